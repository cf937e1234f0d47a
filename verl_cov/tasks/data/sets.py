"""The table of the data sets of the paper's runs: where each is published, in which formats, with how many rows.

Paper: the training and evaluation sets are those of Sections 2.2 and 4.3 and Appendix A of arXiv 2505.22617. Numbers of
rows are what the sources' makers or users state (see the comment on each set); () where we know none. Evaluation by
sampling (temperature 0.6, 32 copies) or greedily follows Section 4.3.

Licences are the dataset cards'; check them before you train.
"""

from __future__ import annotations

from dataclasses import dataclass

from verl_cov.tasks.data.formats.chat import chat
from verl_cov.tasks.data.formats.code import acecode, kodcode
from verl_cov.tasks.data.formats.items import Format
from verl_cov.tasks.data.formats.mathematics import after_hashes, boxed, olympiad, plain
from verl_cov.tasks.data.sources import Hub

# Share of KodCode's problems that kodcode_test owns. The paper held out a part and does not say which; about 1,000 of
# the quarter of a million problems suit a validation.
KODCODE_HELD_OUT = 1 / 256


@dataclass(frozen=True)
class DataSet:
    """A data set of the table.

    hubs: where it is on the Hub; the first is the default, the others say what their downloads look like.
    rows: how many rows its known sources have, the paper's first; () if unknown. Of a training set, the rows in its
        source before anything is dropped; of an evaluation set, its problems.
    copies, temperature: how validation uses it.
    held_out: (share, side): this set is one side of a split by hash; side True owns `share` of the problems.
    strict: the source's other splits are other sets of this table.
    hint: told to the user when the number of rows does not fit, or when the source is not on the Hub.
    """

    name: str
    ability: str
    split: str
    formats: tuple[Format, ...]
    hubs: tuple[Hub, ...] = ()
    rows: tuple[int, ...] = ()
    license: str | None = None
    copies: int = 1
    temperature: float | None = None
    held_out: tuple[float, bool] | None = None
    strict: bool = False
    hint: str = ""

    @property
    def columns(self) -> frozenset[str]:
        """The fields that at least one of the formats reads."""
        return frozenset(name for known in self.formats for name in (*known.fields, *known.optional))

    @property
    def where(self) -> str:
        """Where the set comes from, for people."""
        return f"{self.hubs[0].id} ({self.hubs[0].split})" if self.hubs else self.hint


def _train(name: str, ability: str, **fields: object) -> DataSet:
    return DataSet(name, ability, "train", **fields)  # type: ignore[arg-type]


def _sampled(name: str, **fields: object) -> DataSet:
    """avg@32 at temperature 0.6."""
    return DataSet(name, "math", "test", copies=32, temperature=0.6, **fields)  # type: ignore[arg-type]


def _greedy(name: str, ability: str = "math", **fields: object) -> DataSet:
    return DataSet(name, ability, "test", temperature=0.0, **fields)  # type: ignore[arg-type]


_EURUS = "PRIME-RL/Eurus-2-RL-Data"
_GSM8K = plain("question", "answer", extract=after_hashes)
_KODCODE = (
    Format(("question", "style", "test"), kodcode, ("test_info", "question_id")),  # KodCode-V1
    Format(("question", "style", "test_code"), kodcode, ("test_info", "question_id")),  # KodCode-V1-SFT-R1, its GitHub
)
_OLYMPIAD_OPTIONAL = ("id", "context", "subject", "language", "modality", "question_type", "images", "image_1")

_ALL = (
    # Rows: 455,261 + 26,758 in train, 1,024 + 1,024 in validation (the dataset card).
    _train(
        "eurus2_rl_math",
        "math",
        formats=(chat("math"),),
        hubs=(Hub(_EURUS),),
        rows=(455_261,),
        license="mit",
        strict=True,
    ),
    # Rows: 7,473 in train, 1,319 in test (cards of copies of it, such as ThWu/gsm8k_formatted).
    _train(
        "gsm8k",
        "math",
        formats=(_GSM8K,),
        hubs=(Hub("openai/gsm8k", "main"),),
        rows=(7_473,),
        license="mit",
        strict=True,
    ),
    # Rows: each of 17,398 prompts stands there about 100 times (BytedTsinghua-SIA/DAPO issues 15 and 36); open-r1
    # publishes it with each once, the question bare in `prompt` and the answer in `solution`.
    _train(
        "dapo_math_17k",
        "math",
        formats=(plain("prompt", "solution"), chat("math")),
        hubs=(Hub("BytedTsinghua-SIA/DAPO-Math-17k"), Hub("open-r1/DAPO-Math-17k-Processed", "all")),
        rows=(1_791_700, 17_398),
        license="apache-2.0",
    ),
    # Rows: the dataset card. `inferences`, most of its 5 GB, is not read.
    _train(
        "acecode",
        "code",
        formats=(Format(("question", "test_cases"), acecode, ("id",)),),
        hubs=(Hub("TIGER-Lab/AceCode-87K"),),
        rows=(87_149,),
        license="mit",
    ),
    _train(
        "eurus2_rl_code",
        "code",
        formats=(chat("code"),),
        hubs=(Hub(_EURUS),),
        rows=(26_758,),
        license="mit",
        strict=True,
    ),
    # Rows: 484,097 over all three styles (a converter's card, sungyub/kodcode-v1-verl); how many are instruct and
    # complete we could not find.
    _train(
        "kodcode",
        "code",
        formats=_KODCODE,
        hubs=(Hub("KodCode/KodCode-V1"),),
        license="cc-by-nc-4.0",
        held_out=(KODCODE_HELD_OUT, False),
    ),
    # BytedTsinghua-SIA/AIME-2024 has the 30 problems 32 times: 960 rows.
    _sampled(
        "aime24",
        formats=(
            plain("problem", "answer", "id"),  # HuggingFaceH4, math-ai
            plain("Problem", "Answer", "ID"),  # Maxwell-Jia
            plain("question", "answer", "id"),  # Qwen2.5-Math's evaluation
            chat("math"),
        ),
        hubs=(Hub("HuggingFaceH4/aime_2024"), Hub("Maxwell-Jia/AIME_2024"), Hub("math-ai/aime24", split="test")),
        rows=(30, 960),
    ),
    # opencompass/AIME2025 has two files (I and II) of 15; give their folder.
    _sampled(
        "aime25",
        formats=(plain("problem", "answer", "id"), plain("question", "answer", "id"), chat("math")),
        hubs=(Hub("math-ai/aime25", split="test"), Hub("yentinglin/aime_2025")),
        rows=(30, 960),
    ),
    # The paper's 83 problems are AI-MO's; the file answers with floats. math-ai/amc23 has 40.
    _sampled(
        "amc",
        formats=(plain("problem", "answer", "id"), plain("question", "answer", "id")),
        hubs=(Hub("AI-MO/aimo-validation-amc"),),
        rows=(83,),
        license="apache-2.0",
        hint="the paper's is AI-MO/aimo-validation-amc, 83 problems; math-ai/amc23 has 40",
    ),
    _greedy(
        "math500",
        formats=(plain("problem", "answer", "unique_id"),),
        hubs=(Hub("HuggingFaceH4/MATH-500", split="test"),),
        rows=(500,),
    ),
    # The paper's number is the subset that rules can judge, Omni-MATH-Rule: 2,821 of Omni-MATH's 4,428. It is a file on
    # GitHub, not on the Hub.
    _greedy(
        "omni_math",
        formats=(plain("problem", "answer"), plain("question", "answer")),
        rows=(2_821,),
        hint="omni_math_rule.jsonl of github.com/KbsdJames/omni-math-rule (KbsdJames/Omni-MATH on the Hub has 4,428)",
    ),
    # 675 in Qwen2.5-Math's evaluation/data/olympiadbench/test.jsonl, 674 in the Hub's OE_TO_maths_en_COMP.
    _greedy(
        "olympiadbench",
        formats=(Format(("question", "final_answer"), olympiad, _OLYMPIAD_OPTIONAL),),
        hubs=(Hub("Hothan/OlympiadBench", "OE_TO_maths_en_COMP"), Hub("math-ai/olympiadbench", split="test")),
        rows=(675, 674),
    ),
    # 272 in Qwen2.5-Math's evaluation/data/minerva_math/test.jsonl (problem, solution); the Hub's: question, answer.
    _greedy(
        "minerva",
        formats=(plain("problem", "solution", "idx", extract=boxed), plain("question", "answer")),
        hubs=(Hub("math-ai/minervamath", split="test"),),
        rows=(272,),
    ),
    _greedy(
        "gsm8k_test",
        formats=(_GSM8K,),
        hubs=(Hub("openai/gsm8k", "main", "test"),),
        rows=(1_319,),
        license="mit",
        strict=True,
    ),
    # The paper's "held-out split": the dataset's own validation split.
    _greedy(
        "eurus2_rl_code_test",
        "code",
        formats=(chat("code"),),
        hubs=(Hub(_EURUS, split="validation"),),
        rows=(1_024,),
        license="mit",
        strict=True,
    ),
    # KodCode has no held-out split: a hash of the problem's id decides (see prepare.held_out).
    _greedy(
        "kodcode_test",
        "code",
        formats=_KODCODE,
        hubs=(Hub("KodCode/KodCode-V1"),),
        license="cc-by-nc-4.0",
        held_out=(KODCODE_HELD_OUT, True),
    ),
)

SETS: dict[str, DataSet] = {dataset.name: dataset for dataset in _ALL}
