"""Checkpoint files to a network, and clips to its inputs. Needs torch; knows no environments."""

from robometer_gym.models.robometer.network.config import RobometerConfig
from robometer_gym.models.robometer.network.modeling import RobometerModel
from robometer_gym.models.robometer.network.processor import RobometerProcessor

__all__ = ["RobometerConfig", "RobometerModel", "RobometerProcessor"]
