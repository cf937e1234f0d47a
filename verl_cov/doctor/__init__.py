"""``verl-cov doctor``: is verl-cov installed so that verl finds it, and would a given run use it?

:mod:`.checks` looks at the installed versions, the plugin in verl and the machine; :mod:`.run` at one run's
configuration; :mod:`.cli` prints what they say. Nothing is trained and no process is started. Whether the losses
really compute what they should on this machine and with this verl (a fork, say) is not asked here: ``verl-cov
selftest`` (:mod:`verl_cov.selftest`) shows it.
"""
