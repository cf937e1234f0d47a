"""Puts ``verl_cov/conf`` on the config search path of every Hydra application, verl's trainer among them.

Hydra imports everything under the namespace package ``hydra_plugins`` (so: no ``__init__.py`` in this folder), in every
Hydra application on the machine: keep it free of heavy imports.
"""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


class VerlCovSearchPathPlugin(SearchPathPlugin):
    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append(provider="verl-cov", path="pkg://verl_cov.conf")
