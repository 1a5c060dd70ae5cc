"""Sweeps: what is tried does not depend on what ends first, on kills, or on how many runs there are at a time."""

import importlib.util
import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from launching import ROOT, launch

from commands.helpers.presets import preset_for
from multirun.jobs import Ending
from multirun.progress import Progress
from multirun.search import Search, rehearse
from multirun.spec import Spec, read_spec
from multirun.sweep import REPORTS, TRIALS, Sweep, rows_in
from protocol.errors import UserError
from rundir.config import RunConfig
from rundir.names import CONFIG, METRICS, SUMMARY

pytest.importorskip("optuna")

STEPS = 40 * 2048
SPEC = f"""
[settings]
total_steps = {STEPS}

[search]
learning_rate = {{ low = 1e-4, high = 1e-2, log = true }}
epochs = {{ low = 1, high = 8 }}
activation = ["tanh", "relu"]
hidden_sizes = {{ choices = [[32], [64, 64]], when = {{ activation = "tanh" }} }}
gae_lambda = {{ low = 0.8, high = 1.0, step = 0.05 }}

[sweep]
trials = 10
"""
GRID = """
[settings]
total_steps = 81920

[search]
epochs = [1, 2, 3]
activation = ["tanh", "relu"]

[sweep]
trials = 6
sampler = "GridSampler"
"""


def spec_of(folder: Path, text: str) -> Spec:
    path = folder / "spec.toml"
    path.write_text(text)
    return read_spec(path, preset_for)


class Simulated:
    """Runs whose curves are a function of their settings. They advance and end in an order that chance decides."""

    def __init__(self, folder: Path, spec: Spec, parallel: int, chance: random.Random) -> None:
        self.folder, self.parallel, self.chance = folder, parallel, chance
        self.sweep = Sweep(folder, spec, Search(spec, "study"), self.make)
        self.under_way: dict[Path, Progress] = {}
        self.started: list[str] = []

    @staticmethod
    def make(run_dir: Path, config: RunConfig) -> None:
        run_dir.mkdir(parents=True)
        config.save(run_dir / CONFIG, {})

    def carry_out(self, killed_after: int | None = None) -> bool:
        """Go on until all is over, or until so many things have happened; returns whether all is over."""
        happened = 0
        while not self.sweep.over:
            while len(self.under_way) < self.parallel and (run := self.sweep.next_run()) is not None:
                self.under_way[run.run_dir] = run
                self.started.append(run.name)
            if self.sweep.over:
                break
            self.advance(self.chance.choice(list(self.under_way.values())))
            if self.chance.random() < 0.5:
                for run_dir in self.sweep.look():
                    if run_dir in self.under_way:
                        self.end(self.under_way[run_dir], "stopped")
            happened += 1
            if happened == killed_after:
                return False
        return True

    def advance(self, run: Progress) -> None:
        """Let a run write some iterations, and end if it is through, or fails."""
        config = RunConfig.load(run.run_dir / CONFIG)
        written = len((run.run_dir / METRICS).read_text().splitlines()) if (run.run_dir / METRICS).exists() else 0
        until = min(40, written + self.chance.randint(1, 20))
        fails = config.ppo.epochs == 8 and config.experiment.seed == 1
        with open(run.run_dir / METRICS, "a") as file:
            for iteration in range(written, until):
                file.write(json.dumps(row_of(config, iteration)) + "\n")
        run.look()
        if fails and until > 10:
            self.end(run, "failed")
        elif until == 40:
            (run.run_dir / SUMMARY).write_text(json.dumps({"status": "finished", "total_steps": STEPS}))
            self.end(run, "finished")

    def end(self, run: Progress, state: Any) -> None:
        del self.under_way[run.run_dir]
        self.sweep.take(Ending(run.run_dir, state, "it broke" if state == "failed" else ""))


def row_of(config: RunConfig, iteration: int) -> dict[str, Any]:
    ppo, experiment = config.ppo, config.experiment
    height = -abs(ppo.learning_rate - 2e-3) * 1e4 + 3 * ppo.epochs + 5 * (experiment.activation == "relu")
    height += len(experiment.hidden_sizes or ()) + ppo.gae_lambda + 0.3 * experiment.seed
    steps = (iteration + 1) * 2048
    mean = height * steps / STEPS if iteration > 3 else None  # No episode has finished at first.
    found = {"policy_version": iteration + 1, "env_steps": steps, "rollout/episode_return_mean": mean}
    return found | {"episode/progress": float(iteration)}


def tried(folder: Path) -> list[dict[str, Any]]:
    return list(rows_in(folder))


def straight(folder: Path, text: str, parallel: int, chance: int = 0) -> list[dict[str, Any]]:
    """The trials of a sweep that is not disturbed."""
    folder.mkdir()
    assert Simulated(folder, spec_of(folder, text), parallel, random.Random(chance)).carry_out()
    return tried(folder)


TPE = 'sampler = { name = "TPESampler", n_startup_trials = 3 }\n'
PRUNED = SPEC + TPE + 'pruner = { name = "MedianPruner", n_startup_trials = 3 }\n'
QUICK = "two seeds, median"
KINDS = {
    QUICK: PRUNED + "seeds = [0, 1]\nat_once = 3\n",
    "TPE": SPEC + TPE,
    "halving": SPEC + TPE + 'pruner = "SuccessiveHalvingPruner"\nat_once = 2\n',
    "hyperband": SPEC.replace("trials = 10", "trials = 20") + TPE + 'at_once = 2\npruner = "HyperbandPruner"\n',
    "random": SPEC
    + 'sampler = "RandomSampler"\npruner = { name = "PercentilePruner", percentile = 60.0 }\nat_once = 2\n',
    "NSGA-II": SPEC + 'sampler = { name = "NSGAIISampler", population_size = 5 }\n',
    "multivariate": SPEC + 'sampler = { name = "TPESampler", multivariate = true, group = true }\nat_once = 1\n',
    "grid": GRID,
}


@pytest.mark.parametrize(
    "kind", ["two seeds, median", *(pytest.param(k, marks=pytest.mark.slow) for k in KINDS if "seeds" not in k)]
)
def test_what_ends_first_and_kills_do_not_change_a_sweep(tmp_path: Path, kind: str) -> None:
    text = KINDS[kind]
    expected = straight(tmp_path / "one", text, parallel=1)
    assert [row["number"] for row in expected] == list(range(len(expected)))
    assert straight(tmp_path / "eight", text, parallel=8, chance=1) == expected
    folder, chance = tmp_path / "killed", random.Random(2)
    folder.mkdir()
    lives = 0
    while True:
        lives += 1
        simulated = Simulated(folder, spec_of(folder, text), chance.choice([1, 3, 8]), chance)
        if simulated.carry_out(killed_after=None if lives > 6 else chance.randint(1, 20)):
            break
    assert lives > 1
    assert tried(folder) == expected
    states = {row["state"] for row in expected}
    assert ("pruned" in states) == ("pruner" in text)


def test_a_pruned_trial_costs_less(tmp_path: Path) -> None:
    rows = straight(tmp_path / "sweep", PRUNED + "at_once = 1\n", parallel=1)
    pruned = [row for row in rows if row["state"] == "pruned"]
    assert pruned and all(max(map(int, row["reports"])) < REPORTS - 1 for row in pruned)
    for row in pruned:  # It was pruned as it did worse than half of those that were complete then.
        last = max(row["reports"], key=int)
        others = [other["reports"][last] for other in rows[: row["number"]] if other["state"] == "complete"]
        assert row["value"] < float(np.median(others))
    lengths = {
        row["number"]: len((tmp_path / "sweep" / f"trial-{row['number']:03}/seed-0" / METRICS).read_text().splitlines())
        for row in rows
    }
    assert all(lengths[row["number"]] == 40 for row in rows if row["state"] == "complete")
    assert min(lengths[row["number"]] for row in pruned) < 40


def test_trials_are_in_the_storage_that_optunas_tools_open(tmp_path: Path) -> None:
    import optuna

    rows = straight(tmp_path / "sweep", PRUNED, parallel=3)
    study = optuna.load_study(study_name="study", storage=f"sqlite:///{tmp_path / 'sweep' / 'optuna.db'}")
    states = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
    assert [states[trial.state.name] for trial in study.trials] == [row["state"] for row in rows]
    assert study.best_value == max(row["value"] for row in rows if row["state"] == "complete")
    assert study.trials[0].params["hidden_sizes"] in ("[32]", "[64, 64]") or rows[0]["settings"]["activation"] == "relu"


def test_a_condition_decides_what_is_searched(tmp_path: Path) -> None:
    rows = straight(tmp_path / "sweep", SPEC, parallel=1)
    for row in rows:
        assert ("hidden_sizes" in row["settings"]) == (row["settings"]["activation"] == "tanh")


def test_settings_that_do_not_go_together_fail_their_trial_alone(tmp_path: Path) -> None:
    text = SPEC.replace("epochs = { low = 1, high = 8 }", "minibatches = [8, 7]")
    rows = straight(tmp_path / "sweep", text, parallel=2)
    failed = [row for row in rows if row["state"] == "failed"]
    assert failed and all("minibatches 7" in row["reason"] and row["settings"]["minibatches"] == 7 for row in failed)
    assert any(row["state"] == "complete" for row in rows)


@pytest.mark.parametrize("objective", ["steps to 20", "episode/progress", "eval"])
def test_objectives(tmp_path: Path, objective: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if objective == "eval":
        advance = Simulated.advance

        def evaluate(self: Simulated, run: Progress) -> None:
            rate = RunConfig.load(run.run_dir / CONFIG).ppo.learning_rate
            found = {"policy_version": 40, "episodes": 20, "return_mean": 1e3 * rate, "return_std": 0.0}
            (run.run_dir / "evaluations.jsonl").write_text(json.dumps(found) + "\n")
            assert RunConfig.load(run.run_dir / CONFIG).training.eval_every is not None
            advance(self, run)

        monkeypatch.setattr(Simulated, "advance", evaluate)
    text = SPEC.replace("trials = 10", "trials = 5") + f'objective = "{objective}"\n'
    rows = straight(tmp_path / "sweep", text, parallel=2)
    values = [row["value"] for row in rows]
    if objective == "eval":
        assert values == pytest.approx([1e3 * row["settings"]["learning_rate"] for row in rows])
    elif objective == "episode/progress":
        assert values == [39.0] * 5
    else:
        assert all(value == 2 * STEPS or value % 2048 == 0 for value in values)
        assert any(value < STEPS for value in values)


def test_a_sweep_whose_file_was_changed_does_not_go_on(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    folder.mkdir()
    assert not Simulated(folder, spec_of(folder, SPEC), 2, random.Random(0)).carry_out(killed_after=30)
    changed = spec_of(folder, SPEC.replace("high = 1e-2", "high = 2e-2"))
    with pytest.raises(UserError, match="proposes other settings"):
        Simulated(folder, changed, 2, random.Random(0)).carry_out()


def test_half_a_line_and_a_lost_storage_do_not_matter(tmp_path: Path) -> None:
    import optuna

    folder = tmp_path / "sweep"
    folder.mkdir()
    assert not Simulated(folder, spec_of(folder, SPEC), 2, random.Random(0)).carry_out(killed_after=40)
    (folder / "optuna.db").unlink()
    with open(folder / TRIALS, "a") as file:
        file.write('{"number": 9, "stat')  # A kill left half a line.
    assert Simulated(folder, spec_of(folder, SPEC), 2, random.Random(0)).carry_out()
    study = optuna.load_study(study_name="study", storage=f"sqlite:///{folder / 'optuna.db'}")
    assert [trial.number for trial in study.trials] == list(range(10)) == [row["number"] for row in tried(folder)]


WRONG = {
    "[search]\nlearning_rat = [1.0]": "learning_rat: there is no such setting; did you mean learning_rate?",
    "[search]\nlearning_rate = 3": "must be a list of choices",
    "[search]\nlearning_rate = { low = 1.0 }": "needs low and high, or choices",
    "[search]\nepochs = { low = 1.5, high = 2 }": "low is 1.5, and must be a whole number",
    "[search]\nlearning_rate = { low = 0, high = 1.0, log = true }": "with log, it must be above 0",
    "[search]\nlearning_rate = { low = 2.0, high = 1.0 }": "low must not be above high",
    "[search]\nactivation = { low = 1, high = 2 }": "is no number: give choices",
    '[search]\nactivation = ["tanh", "sinus"]': "activation is 'sinus', and must be one of tanh, relu, silu",
    "[search]\nseed = [1, 2]": "seed cannot be set here; give [sweep] seeds",
    "[settings]\nepochs = 3": "has no [search]",
    '[settings]\ninit_from = "runs/one"\n[search]\nepochs = [1]': "init_from must be an absolute path",
    "[settings]\nepoch = 3\n[search]\nepochs = [1]": "unknown settings epoch",
    "[settings]\nepochs = 3\n[search]\nepochs = [1]": "epochs is in [settings] and in [search]",
    "[search]\nepochs = []": "choices must be a list with something in it",
    "[search]\nepochs = [1, 1]": "choices has one more than once",
    '[search]\nepochs = { choices = [1, 2], when = { activation = "relu" } }': "never holds: it is 'tanh'",
    '[search]\nactivation = ["relu"]\nepochs = { choices = [1], when = { activation = "silu" } }': "does not take",
    '[search]\nepochs = { choices = [1], when = { activation = "relu" } }\nactivation = ["relu"]': "only below",
    "[search]\nepochs = [1]\n[sweep]\nseed = -1": "must be a whole number 0 or above",
    "[sweeps]\ntrials = 3": "sweeps is none of its tables",
    "[search]\nepochs = [1]\n[sweep]\ntrial = 3": "unknown trial; there are trials",
    "[search]\nepochs = [1]\n[sweep]\ntrials = 0": "trials is 0, and must be a whole number above 0",
    "[search]\nepochs = [1]\n[sweep]\nseeds = 3": "seeds must be a list",
    "[search]\nepochs = [1]\n[sweep]\nseeds = [1, 1]": "more than once",
    '[search]\nepochs = [1]\n[sweep]\nobjective = "score"': "objective is 'score', and must be",
    '[search]\nepochs = [1]\n[sweep]\nobjective = "steps to 9"\npruner = "MedianPruner"': "leave the pruner out",
    '[search]\nepochs = [1]\n[sweep]\ndirection = "up"': "direction must be maximize or minimize",
    '[search]\nepochs = { choices = [1, 2], when = { colour = "red" } }': "when names colour, which is no setting",
    "[search": "cannot be read as the file of a sweep",
}


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.toml")), ids=lambda path: path.stem)
def test_the_examples_can_be_tried(path: Path) -> None:
    rehearse(read_spec(path, preset_for))


@pytest.mark.parametrize("text", WRONG)
def test_mistakes_in_the_file_are_one_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError) as error:
        spec_of(tmp_path, text)
    assert WRONG[text] in str(error.value) and "\n" not in str(error.value)
    assert "spec.toml" in str(error.value)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('sampler = "TPESampeler"', "Optuna has no sampler TPESampeler; there are"),
        ('sampler = { name = "TPESampler", candidates = 3 }', "[sweep] sampler TPESampler: TypeError"),
        ('pruner = "BasePruner"', "Optuna has no pruner BasePruner; there are"),
        ('sampler = "GridSampler"', "GridSampler needs choices, and learning_rate has a range"),
        pytest.param(
            'sampler = "CmaEsSampler"',
            "CmaEsSampler needs cmaes, which is not installed",
            marks=pytest.mark.skipif(importlib.util.find_spec("cmaes") is not None, reason="cmaes is installed"),
        ),
        ("seeds = [-1]", "no trial can run: --seed"),
    ],
)
def test_mistakes_in_samplers_and_pruners_are_one_line(tmp_path: Path, line: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected.replace("[", r"\[")):
        rehearse(spec_of(tmp_path, SPEC + line + "\n"))


def test_a_pruner_around_a_pruner(tmp_path: Path) -> None:
    line = 'pruner = { name = "PatientPruner", patience = 1, wrapped_pruner = "MedianPruner" }\n'
    rehearse(spec_of(tmp_path, SPEC + line))
    rows = straight(tmp_path / "sweep", SPEC + TPE + line + "at_once = 1\n", parallel=1)
    assert len(rows) == 10


def test_more_trials_go_on_and_all_else_stays(tmp_path: Path) -> None:
    expected = straight(tmp_path / "whole", SPEC, parallel=3)
    fewer = SPEC.replace("trials = 10", "trials = 6")
    straight(tmp_path / "sweep", fewer, parallel=3)
    folder = tmp_path / "sweep"
    assert Simulated(folder, spec_of(folder, SPEC), 2, random.Random(4)).carry_out()
    assert tried(folder) == expected
    one, two = spec_of(tmp_path, fewer), spec_of(tmp_path, SPEC)
    assert one.identity == two.identity != spec_of(tmp_path, SPEC + "seeds = [1]\n").identity


def test_a_lost_line_of_the_trials_is_found_again(tmp_path: Path) -> None:
    expected = straight(tmp_path / "sweep", SPEC, parallel=3)
    folder = tmp_path / "sweep"
    lines = (folder / TRIALS).read_text().splitlines(keepends=True)
    (folder / TRIALS).write_text("".join([*lines[:3], "nonsense\n", *lines[4:]]))
    (folder / "optuna.db").write_text("nonsense")
    assert Simulated(folder, spec_of(folder, SPEC), 2, random.Random(4)).carry_out()
    assert tried(folder) == expected


def test_mistakes_in_the_command_are_one_line(tmp_path: Path) -> None:
    spec = tmp_path / "spec.toml"
    spec.write_text(SPEC)
    (tmp_path / "empty").mkdir()
    for flags, expected in {
        (): "needs one of SPEC.toml, --resume DIR and --best DIR",
        (spec, "--resume", tmp_path): "needs one of",
        (spec, "--parallel", "0"): "--parallel must be at least 1",
        ("--resume", tmp_path / "empty"): "there is no sweep here",
        ("--best", tmp_path / "empty", "--run-dir", "x"): "--run-dir is for a new sweep",
        (tmp_path / "none.toml",): "cannot be read as the file of a sweep",
    }.items():
        done = launch("sweep", *flags)
        assert done.returncode == 2 and expected in done.stderr and done.stderr.count("\n") == 1, done.stderr


SMALL = """
[settings]
env = "CartPole-v1"
total_steps = 6144
device = "cpu"

[search]
learning_rate = { low = 1e-4, high = 1e-2, log = true }
gae_lambda = { low = 0.8, high = 1.0 }

[sweep]
trials = 4
at_once = 2
"""


@pytest.mark.slow
def test_a_real_sweep_finds_the_same_with_one_or_more_runs_at_a_time(tmp_path: Path) -> None:
    spec = tmp_path / "spec.toml"
    spec.write_text(SMALL)
    for parallel in (1, 3):
        done = launch("sweep", spec, "--run-dir", tmp_path / str(parallel), "--parallel", parallel)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "4 of 4 trials: 4 complete" in done.stdout
    assert tried(tmp_path / "1") == tried(tmp_path / "3")
    digests = [
        [json.loads(path.read_text())["weights_digest"] for path in sorted((tmp_path / name).glob("*/*/summary.json"))]
        for name in "13"
    ]
    assert digests[0] == digests[1] and len(set(digests[0])) == 4
    best = (tmp_path / "1" / "best.toml").read_text().splitlines()
    assert best[1:] == (tmp_path / "3" / "best.toml").read_text().splitlines()[1:]
    for name in ("history.png", "importances.png", "slices.png"):
        assert (tmp_path / "1" / name).stat().st_size > 1000
    # The file of the best trains the same run again.
    number = max(tried(tmp_path / "1"), key=lambda row: row["value"])["number"]
    done = launch("--config", tmp_path / "1" / "best.toml", "--run-dir", tmp_path / "again", "--seed", 0)
    assert done.returncode == 0, done.stderr
    again = json.loads((tmp_path / "again" / "summary.json").read_text())
    there = json.loads((tmp_path / "1" / f"trial-{number:03}" / "seed-0" / "summary.json").read_text())
    assert again["weights_digest"] == there["weights_digest"]
    # A second go on with it does nothing, and --best says the same.
    shutil.rmtree(tmp_path / "3" / "trial-000")
    for flags in (["--resume", tmp_path / "1"], ["--best", tmp_path / "1"]):
        done = launch("sweep", *flags)
        assert done.returncode == 0 and "4 of 4 trials: 4 complete" in done.stdout, done.stderr
