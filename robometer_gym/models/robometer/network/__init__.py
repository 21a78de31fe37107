"""The network: checkpoint files, weights, and the encoding of clips. Knows no environments."""

from robometer_gym.models.robometer.network.config import RobometerConfig
from robometer_gym.models.robometer.network.modeling import RobometerModel
from robometer_gym.models.robometer.network.processor import RobometerProcessor

__all__ = ["RobometerConfig", "RobometerModel", "RobometerProcessor"]
