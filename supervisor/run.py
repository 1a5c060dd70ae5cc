"""One run from its start to its end: puts its parts together, and reports its result."""

import json
import queue
from dataclasses import replace

from protocol.errors import UserError
from protocol.events import Caution
from protocol.execution import Execution
from protocol.files import read_object, read_rows, replace_file
from protocol.lifeline import FAILURE, SUCCESS
from protocol.limits import allow_many_files
from protocol.output import complain, say
from protocol.process import as_typed, as_word
from protocol.text import counted
from rundir.config import RunConfig
from rundir.names import LOGS, METRICS, SUMMARY
from supervisor.address import listening
from supervisor.awake import awake
from supervisor.evaluation import Evaluation
from supervisor.report import Report
from supervisor.signals import signals
from supervisor.sinks import Sinks
from supervisor.status import RunStatus
from supervisor.supervisor import RunFailed, Supervisor
from supervisor.terminal import Terminal
from supervisor.workers import END_SECONDS, Events, Workers


def supervise(config: RunConfig, execution: Execution) -> int:
    """Run one learner and its actors to the end; returns the exit code. Raises `UserError`."""
    run_dir = execution.run_dir
    summary_path = run_dir / SUMMARY
    earlier = read_object(summary_path) or {}  # The summary of the run's earlier part.
    events: Events = queue.SimpleQueue()
    evaluation = Evaluation(run_dir, events, execution.step_timeout, config.training.best_by)
    training = config.training
    trained = earlier.get("total_steps", (*training.earlier_totals, training.total_steps)[0])
    if earlier.get("status") == "finished" and trained == training.total_steps and not evaluation.pending():
        say(f"{as_typed(run_dir)} is finished already: {earlier['weights_digest']}")
        return SUCCESS
    title = _title(config, execution)
    total_steps = config.horizon.total * config.experiment.env_steps_per_iteration
    status = RunStatus(title, total_steps, elsewhere=execution.workers == "ray")
    terminal = Terminal(status, execution.quiet)
    resume = " ".join([f"--resume {as_word(run_dir)}", *execution.flags_to_resume])
    report = Report(run_dir, status, terminal, resume)
    if not execution.quiet:
        terminal.say(f"{title} -> {as_typed(run_dir)}")
    if terminal.shows_view:
        status.take_earlier(read_rows(run_dir / METRICS, ["env_steps"]))
    _tell_at_once(report, terminal, execution, config.experiment.num_lanes)
    allow_many_files()
    with (
        awake(not execution.let_sleep),
        signals(events),
        listening("inproc" if execution.workers == "threads" else execution.transport) as place,
        terminal,
    ):
        workers = _workers(config, replace(execution, address=place.address), events)
        sinks = Sinks(execution.sinks, config, run_dir, lambda text: events.put(Caution(text)))
        supervisor = Supervisor(workers, execution, place.folder, events, report, evaluation, sinks)
        error = None
        try:
            supervisor.start()
            supervisor.watch()
        except RunFailed as failure:
            error = str(failure)
        except UserError as mistake:
            error = str(mistake)
            raise
        finally:
            workers.end(END_SECONDS)
            supervisor.conclude()
            summary = supervisor.summary
            if summary is not None:
                restarts = {name: earlier.get(name, 0) + count for name, count in supervisor.restarts.items()}
                summary |= restarts | evaluation.summary()
                if error is not None:
                    summary |= {"status": "failed", "error": error}
                try:
                    replace_file(summary_path, json.dumps(summary, indent=2) + "\n")
                except OSError as failure:
                    report.tell("warning", f"{summary_path} NOT WRITTEN: {failure}")
            report.end(summary, error)
    if error is not None:
        complain(f"launch.py: {error} (logs in {as_typed(run_dir / LOGS)}; go on with {resume})")
        return FAILURE
    return SUCCESS


def _workers(config: RunConfig, execution: Execution, events: Events) -> Workers:
    """The learner and actors of the run. Each kind of workers is imported only if it is needed."""
    if execution.workers == "threads":
        from supervisor.thread_workers import ThreadWorkers

        return ThreadWorkers(config, execution, events)
    if execution.workers == "ray":
        from supervisor.ray_workers import RayWorkers

        return RayWorkers(execution, events)
    from supervisor.process_workers import ProcessWorkers

    return ProcessWorkers(execution, events)


def _title(config: RunConfig, execution: Execution) -> str:
    """The experiment and how it is executed, in one line."""
    experiment, number, remote = config.experiment, execution.num_actors, execution.remote
    transport = {"threads": "in-process", "ray": "Ray"}.get(execution.workers, execution.transport)
    parts = [f"{counted(number, 'actor')} over {transport}"] if number else []
    parts += [f"remote actors at {remote.address}"] if remote else []
    lanes = f"{counted(experiment.num_lanes, 'lane')} of {counted(experiment.lane_size, 'environment')}"
    return f"{experiment.env}, seed {experiment.seed}, {experiment.schedule}: {' and '.join(parts)}, {lanes}"


def _tell_at_once(report: Report, terminal: Terminal, execution: Execution, num_lanes: int) -> None:
    """Report what a user should know before anything happens."""
    remote, idle = execution.remote, execution.num_actors - num_lanes
    if remote is not None and remote.keys is None:
        warning = (
            f"no keys. Whoever reaches {remote.address} can read this run's policy, send it false experience, or stop"
            " it, and nothing on the wire is encrypted"
        )
        terminal.say(f"WARNING: {warning}")
        report.tell("warning", warning, aloud=False)
    if idle > 0:
        report.tell("note", f"{execution.num_actors} actors are more than the {num_lanes} lanes; {idle} will idle")
