"""The configuration: YAML files in layers over the defaults of `Config`, and where each value came from."""

from flcache.config.loading import ResolvedConfig, load_config, load_resolved, print_config, to_yaml
from flcache.config.schema import as_dict
from flcache.config.tree import Config

__all__ = ["Config", "ResolvedConfig", "as_dict", "load_config", "load_resolved", "print_config", "to_yaml"]
