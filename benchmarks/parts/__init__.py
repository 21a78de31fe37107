"""What the benchmarks of the model share: shapes, weights, videos, LeRobot's path, floors."""
