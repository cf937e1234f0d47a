"""``verl-cov doctor``: which verl is here, what of verl-cov works with it, and does it find this plugin?

:mod:`.report` prints what :mod:`.checks` find. The installed verl is read (:mod:`.installed`, :mod:`.fingerprints`),
and what has to run runs in a fresh interpreter (:mod:`.processes`, :mod:`.probe`), as verl itself would start.
Nothing is imported here: the probe is in this package, and has to come up without the rest.
"""
