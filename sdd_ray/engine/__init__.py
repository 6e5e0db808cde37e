"""The only place that knows Ray.

Importing it settles, before Ray is imported, what Ray reads from the environment: no telemetry, no
doubled output (the commands show their own progress), and workers that start as the driver did.
Whatever the user has set stays as it is.
"""

import os
import warnings

_DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DATA_LOG_LEVEL": "ERROR",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # Ray Tune prints tables to standard output whatever its verbosity
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Under `uv run` Ray would start every worker through uv and upload the working directory.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}

for _name, _value in _DEFAULTS.items():
    os.environ.setdefault(_name, _value)

# Ray Train sets an option that Ray Data has deprecated; no user can do anything about it.
warnings.filterwarnings("ignore", message=".*ExecutionOptions.exclude_resources")
