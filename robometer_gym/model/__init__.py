"""The model half: checkpoint files to predictions. Needs torch; knows nothing of environments."""

from robometer_gym.model.config import RobometerConfig
from robometer_gym.model.modeling import RobometerModel
from robometer_gym.model.predictor import RobometerRewardModel
from robometer_gym.model.processor import RobometerProcessor

__all__ = ["RobometerConfig", "RobometerModel", "RobometerProcessor", "RobometerRewardModel"]
