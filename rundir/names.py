"""The names of files and folders in a run directory."""

CONFIG = "config.toml"
EXECUTION = "execution.json"  # How the run was executed last.
INITIAL = "initial.safetensors"  # The policy that the run begins from, with --init-from.
METRICS = "metrics.jsonl"
EVALUATIONS = "evaluations.jsonl"
EVENTS = "events.jsonl"
STATUS = "status.json"
SUMMARY = "summary.json"

CHECKPOINTS = "checkpoints"
PENDING = "evaluations"  # versions that wait to be evaluated
BEST = "best"  # the version with the best evaluation
FAULTS = "faults"
LOGS = "logs"
