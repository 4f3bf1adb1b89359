"""The architectures there are a port for."""

from robustjax.errors import UserError
from robustjax.models import gpt_neox, qwen2
from robustjax.models.port import ModelConfig, Port

PORTS = (gpt_neox.PORT, qwen2.PORT)


def port_of(config: ModelConfig) -> Port:
    """The port that a config belongs to."""
    for port in PORTS:
        if isinstance(config, port.config_type):
            return port
    raise ValueError(f"{type(config).__name__} is the config of no port")


def port_of_model_type(model_type: str) -> Port:
    """The port of one of Hugging Face's model types.

    Raises:
        UserError: there is none; the message lists those there are.
    """
    for port in PORTS:
        if model_type in port.model_types:
            return port
    known = ", ".join(name for port in PORTS for name in port.model_types)
    raise UserError(f"model_type {model_type!r} has no port; use a model of type {known}")
