"""x"""
import functools
import pytest
from tests.host import engine, other_engines
from tests.host.other_engines import Case

RATIO=0.05
KL = dict(loss_mode="verl_cov.kl_cov", kl_cov_ratio=RATIO, ppo_kl_coef=0.7, cov_seed=11)
def test_x(untrained_model):
    import time
    t=time.time()
    cases=(Case("m dp2","megatron",dp=2),Case("m tp2","megatron",tp=2),Case("m cp2","megatron",cp=2),Case("m pp2","megatron",pp=2,tokens=64,current=False),
    Case("t dp2","torchtitan",dp=2),Case("t tp2","torchtitan",tp=2),Case("a dp2","automodel",dp=2),Case("a tp2","automodel",tp=2),Case("v dp2","veomni",dp=2),Case("v cp2","veomni",cp=2))
    r=engine.launch("tests.host.other_engines", other_engines.Spec(str(untrained_model),cases,{"kl_cov, old":KL,"kl_cov, current":KL|{"cov_log_prob":"current"}}),200)
    print(time.time()-t)
    for k,v in r.items(): print(k,sorted(v.selected),{a:float((b**2).sum()) for a,b in v.gradient.items()},v.has_output,v.loss_calls,v.metrics.get("loss"), len(v.metrics))
