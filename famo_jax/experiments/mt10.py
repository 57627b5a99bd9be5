"""Ten robots by reinforcement: ``python -m famo_jax.experiments.mt10`` (extra ``metaworld``).

Multi-task soft actor-critic on Meta-World's MT10, as in the paper: the agent is that of
:mod:`famo_jax.experiments.problems.sac`, and what a method weighs are the losses of the tasks'
critics. The robots step in processes of their own. There are two presets:

* ``small``, the default, for two CPU cores: a *demonstration*. Seeds of reinforcement learning
  differ by more than methods do: it compares nothing;
* ``paper``: the official settings, for a GPU and days.

After every few episodes the agent is evaluated, by the means of its policy and on robots of its
own: an episode succeeds that does at any of its steps. ``--frames`` has a few moments of an episode
of each robot drawn at the end.
"""

import argparse
import functools
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from famo_jax.experiments import _command, _methods, _plots, _statistics, _tables
from famo_jax.experiments._files import Array, Runs
from famo_jax.experiments._methods import Method, described
from famo_jax.experiments._study import Option, Study, Summary
from famo_jax.experiments.problems import _metaworld

if TYPE_CHECKING:
    from famo_jax.experiments import _checkpoint
    from famo_jax.experiments._train import Session
    from famo_jax.experiments.problems import sac

OFFICIAL = "famo-official"
METHODS: dict[str, Method] = {
    name: method
    for name, method in _methods.METHODS.items()
    if name != "stl" and method.measure != "fresh"
}
METHODS[OFFICIAL] = _methods.METHODS["famo-no-c"]._replace(
    description="FAMO, two-pass, c as its RL code has it: times the sum that the paper divides by",
    colour="#a50026",
)
NETWORKS = ["mtsac", "multi-head", "soft-modularization"]
PRESETS: dict[str, dict[str, Any]] = {
    "small": {
        "identity": "told",
        "alphas": "own",
        "rewards": "v2",
        "steps": 31_500,
        "random_steps": 300,
        "call": 10,
        "evaluate": 30,
        "episodes": 1,
        "buffer": 45_000,
        "batch_size": 64,
        "width": 256,
        "depth": 2,
        "learning_rate": 1e-3,
        "clip": 1.0,
        "least_log_std": -5.0,
        "gamma": 1e-3,
        "logits_rate": 5e-3,
    },
    "paper": {
        "identity": "untold",
        "alphas": "shared",
        "rewards": "v1-scaled",
        "steps": 2_000_000 - 2_000_000 % 30_000,  # whole evaluations
        "random_steps": 1500,
        "call": 1,
        "evaluate": 200,
        "episodes": 1,
        "buffer": 100_000,
        "batch_size": 128,
        "width": 400,
        "depth": 3,
        "learning_rate": 3e-4,
        "clip": 0.0,
        "least_log_std": -20.0,
        "gamma": 1e-2,
        "logits_rate": 5e-3,
    },
}
MOST_REWARD = 10.0  # of Meta-World's rewards v2
EDGE, GREEN = 5, (46, 160, 67)  # of the frames of who has succeeded, in pixels
GOALS_OF = 1000  # added to a seed: whose goals a run has


def by_preset(what: str, kind: Any = _command.positive_int, metavar: str = "N") -> Option:
    """An option that the preset gives where it is not given."""
    return Option(kind, f"{what}; by the preset", metavar=metavar)


OPTIONS = {
    "preset": Option(_command.one_of(list(PRESETS)), " or ".join(PRESETS), metavar="NAME"),
    "methods": _command.methods_option(list(METHODS)),
    "tasks": Option(
        _command.one_of(list(_metaworld.TASKS)),
        f"robots, of {', '.join(_metaworld.TASKS)}",
        several=True,
        metavar="TASK",
    ),
    "network": Option(_command.one_of(NETWORKS), f"any of {', '.join(NETWORKS)}", metavar="NAME"),
    "identity": by_preset(
        "told or untold: whether the network is told its task",
        _command.one_of(["told", "untold"]),
        "WHETHER",
    ),
    "scope": Option(
        _command.one_of(["critics", "both"]),
        "critics, as in the paper, or both: the actor's losses are weighed too, above their bound "
        f"for rewards of at most {MOST_REWARD:g}",
        metavar="WHAT",
    ),
    "alphas": by_preset(
        "own or shared: a temperature for each task, or one",
        _command.one_of(["own", "shared"]),
        "WHOSE",
    ),
    "rewards": by_preset(
        "v1 or v2, or v1-scaled, v2-scaled: over their running deviation",
        _command.one_of(["v1", "v2", "v1-scaled", "v2-scaled"]),
        "WHICH",
    ),
    "steps": by_preset("steps of every robot"),
    "random_steps": by_preset("of these before the agent acts; then as many updates at once"),
    "call": by_preset("steps, and as many updates, in a call: less is fresher, more is faster"),
    "horizon": Option(_command.positive_int, "steps of an episode"),
    "goals": Option(_command.positive_int, "goals of each task, in turns, to be trained and tried"),
    "evaluate": by_preset("episodes after which the agent is evaluated"),
    "episodes": by_preset("episodes of each task in an evaluation"),
    "frames": Option(
        _command.whole,
        "pictures of an episode of each robot, at its end; MUJOCO_GL=egl or osmesa where there is "
        "no display",
    ),
    "buffer": by_preset("transitions of each task that are kept"),
    "batch_size": by_preset("transitions of each task in an update"),
    "width": by_preset("units of a hidden layer"),
    "depth": by_preset("hidden layers"),
    "learning_rate": by_preset("of Adam, for all", _command.positive_float, "RATE"),
    "clip": by_preset("of the gradients' norms, 0 for none", _command.non_negative_float, "NORM"),
    "least_log_std": by_preset("of the policy, the most being 2", float, "X"),
    "gamma": by_preset("decay of FAMO's logits", _command.non_negative_float, "GAMMA"),
    "logits_rate": by_preset(
        "learning rate of amortized Nash-MTL's logits", _command.positive_float, "RATE"
    ),
}


def check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Fills in what the preset says, and refuses what does not go together."""
    for name, value in PRESETS[options.preset].items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.goals > _metaworld.GOALS:
        parser.error(f"argument --goals: expected at most {_metaworld.GOALS}, got {options.goals}")
    if options.episodes > options.goals:  # the same episode again would come to the same end
        parser.error(
            f"argument --episodes: expected at most --goals, {options.goals}, got "
            f"{options.episodes}"
        )
    if options.horizon > MOST_STEPS:
        parser.error(f"argument --horizon: expected at most {MOST_STEPS}, got {options.horizon}")
    for name in ("horizon", "random_steps"):
        value, flag = getattr(options, name), name.replace("_", "-")
        if value % options.call:
            parser.error(
                f"argument --{flag}: expected a multiple of --call, {options.call}, got {value}"
            )
    period = options.horizon * options.evaluate
    if options.steps % period:
        parser.error(
            "argument --steps: expected whole evaluations, a multiple of --horizon times "
            f"--evaluate, {period}, got {options.steps}"
        )
    if options.frames > options.horizon:
        parser.error(f"argument --frames: expected at most {options.horizon}, got {options.frames}")
    if options.buffer < options.call:
        parser.error(f"argument --buffer: expected at least --call, got {options.buffer}")
    if options.network == "soft-modularization" and options.identity == "untold":
        parser.error("argument --identity: expected told, as soft-modularization mixes by the task")
    if options.scope == "both" and options.rewards != "v2":
        parser.error(f"argument --rewards: expected v2 for --scope both, got {options.rewards}")
    if not options.least_log_std < 2:
        parser.error(f"argument --least-log-std: expected less than 2, got {options.least_log_std}")


MOST_STEPS = 500  # that Meta-World lets an episode have


# --- The run --------------------------------------------------------------------------------------


class Curves(NamedTuple):
    """What a training leaves, ``[points, K]``: a point an evaluation, NaN where it is to come."""

    success: Array  # of an evaluation's episodes
    trained: Array  # of the episodes trained on since the last
    returns: Array  # mean of these, undiscounted
    losses: Array  # means over the updates since the last
    task_weights: Array  # of a method with logits
    entropy: Array
    alpha: Array  # at the time


class Saved(NamedTuple):
    """A training between two episodes, whole: it goes on as if it had not stopped."""

    agent: Any
    replay: Any
    scale: tuple[Array, Array]  # the running mean and variance of the rewards, [K]
    curves: Curves
    took: Array  # [4]: seconds and steps of the robots, seconds and number of the updates


def run(options: argparse.Namespace, session: "Session") -> Runs:
    """Trains an agent by each method and with each seed, one after another."""
    from famo_jax.experiments import _checkpoint

    seeds = range(options.first_seed, options.first_seed + options.seeds)
    arrays: dict[str, dict[str, Array]] = {}
    total, rewards = np.zeros(4), options.rewards.partition("-")[0]
    tells = {(name, seed): session.row(f"{name}, seed {seed}") for name in options.methods
             for seed in seeds}  # fmt: skip
    with _metaworld.lanes(options.tasks, rewards) as lanes:
        if options.frames:  # or it ends here
            filming = lanes._replace(kind="frames")
            filming.reset(GOALS_OF, 0)
            filming.frames()
        for name in options.methods:
            every, filmed = [], []
            for seed in seeds:
                own = f"{name} {seed}"

                def save(episode: int, state: Saved, own: str = own) -> None:
                    if session.checkpoint_dir:
                        spent = time.perf_counter() - session.begun
                        _checkpoint.save(session.checkpoint_dir, own, episode, state, spent)

                tell = tells[name, seed]
                saved = session.saved.get(own)
                curves, took, act = train(options, name, seed, lanes, saved, save, tell)
                every.append(curves)
                total += took
                if options.frames:
                    tell("drawing")
                    filmed.append(film(options, seed, lanes, act))
                tell("done")
            arrays[name] = {
                field: np.stack(leaves)[None]
                for field, leaves in zip(Curves._fields, zip(*every, strict=True), strict=True)
            }
            if filmed:
                arrays[name]["frames"] = np.stack(filmed)[None]
    with np.errstate(invalid="ignore"):
        rates = {"robot_steps": total[1] / total[0], "updates": total[3] / total[2]}
    arms = {
        name: {"settings": [{"learning_rate": options.learning_rate}], "seeds": list(seeds)}
        for name in options.methods
    }
    return Runs({"arms": arms, "times": {}, "problem": {"per_second": rates}}, arrays)


def settings_of(options: argparse.Namespace, name: str) -> "sac.Settings":
    """What the options say of the agent."""
    from famo_jax.experiments.problems import sac

    return sac.Settings(
        network=options.network,
        identity=options.identity == "told",
        width=options.width,
        depth=options.depth,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        clip=options.clip,
        least_log_std=options.least_log_std,
        shared_alpha=options.alphas == "shared",
        official_c=name == OFFICIAL,
        most_reward=MOST_REWARD if options.scope == "both" else None,
    )


class Compiled(NamedTuple):
    """What a training calls, the same for every seed."""

    begin: Callable[..., Any]  # (key) -> agent
    act: Callable[..., Any]  # (actor, [K, 39], key) -> [K, 4]
    mean: Callable[..., Any]  # (actor, [K, 39]) -> [K, 4]
    add: Callable[..., Any]  # (replay, transitions [K, call, ...]) -> replay, in its place
    learn: Callable[..., Any]  # (agent, replay, keys [call]) -> (agent, told), in its place
    keys: Callable[..., Any]  # (key, use, first step) -> [call], a key for each of these steps


@functools.cache
def compiled(
    k: int, own: "sac.Settings", name: str, more: tuple[tuple[str, float], ...], call: int
) -> Compiled:
    """For K tasks and a method with its hyperparameters."""
    import jax
    import jax.numpy as jnp

    from famo_jax.experiments.problems import sac

    sizes = _metaworld.OBSERVATION, _metaworld.ACTION
    each = sac.functions(k, sizes, own, METHODS[name], dict(more))

    def keys(key: Any, use: Any, first: Any) -> Any:
        own_key, steps = jax.random.fold_in(key, use), first + jnp.arange(call)
        return jax.vmap(functools.partial(jax.random.fold_in, own_key))(steps)

    return Compiled(
        jax.jit(each.begin),
        jax.jit(lambda actor, seen, key: each.act(actor, seen[:, None], key)[:, 0]),
        jax.jit(lambda actor, seen: each.act(actor, seen[:, None], None)[:, 0]),
        jax.jit(sac.add, donate_argnums=0),
        jax.jit(functools.partial(sac.learn, each, own.batch_size), donate_argnums=0),
        jax.jit(keys),
    )


def train(
    options: argparse.Namespace,
    name: str,
    seed: int,
    lanes: Any,
    saved: "_checkpoint.Saved | None" = None,
    save: Callable[[int, Saved], None] = lambda episode, state: None,
    tell: Callable[[str], None] = lambda status: None,
) -> tuple[Curves, Array, Callable[[Array], Any]]:
    """One agent: its curves, what robots and updates took, ``[4]``, and how it acts in the end.

    The first robots and updates are not counted. It acts by the means of its policy. Nothing but
    the saved state and the number of the episode says how it goes on.
    """
    import jax

    from famo_jax.experiments import _checkpoint
    from famo_jax.experiments.problems import sac

    k, sizes = len(options.tasks), (_metaworld.OBSERVATION, _metaworld.ACTION)
    own, key = settings_of(options, name), jax.random.key(seed)
    more = tuple((each, getattr(options, each)) for each in METHODS[name].takes)
    each = compiled(k, own, name, more, options.call)

    def begin() -> Saved:
        points = options.steps // (options.horizon * options.evaluate)
        curves = Curves(*(np.full((points, k), np.nan, np.float32) for _ in Curves._fields))
        replay = sac.empty(k, options.buffer, sizes)
        scale = np.zeros(k, np.float32), np.ones(k, np.float32)
        return Saved(each.begin(key), replay, scale, curves, np.zeros(4, np.float32))

    state, first = begin(), 0
    if saved:
        state, first = _checkpoint.restore(saved, state), int(saved.steps)
        state = state._replace(
            scale=tuple(map(np.array, state.scale)),
            curves=Curves(*map(np.array, state.curves)),
            took=np.array(state.took),
        )
    agent, replay, scale, curves, took = state
    seen_here: list[Any] = []  # what updates have told since the last evaluation
    ends: list[tuple[Array, Array]] = []  # success and returns of episodes since then
    trained = False  # in this process: the first time it is compiled

    for episode in range(first, options.steps // options.horizon):
        observations = lanes.reset(GOALS_OF + seed, episode % options.goals)
        success, returns = np.zeros(k, bool), np.zeros(k)
        for start in range(0, options.horizon, options.call):
            done = episode * options.horizon + start  # steps before this call
            keys = each.keys(key, 0, done)
            began, rows = time.perf_counter(), []
            for number in range(options.call):
                if done < options.random_steps:
                    rng = np.random.default_rng([seed, done + number])
                    actions = rng.uniform(-1, 1, (k, sizes[1])).astype(np.float32)
                else:
                    actions = np.asarray(each.act(agent.actor, observations, keys[number]))
                after, rewards, succeeds = lanes.step(actions)
                success |= succeeds
                returns += rewards
                if options.rewards.endswith("scaled"):
                    rewards, scale = sac.scaled(rewards, scale)
                rows.append(sac.Transitions(observations, actions, rewards, after))
                observations = after
            stacked = (np.stack(leaves, axis=1) for leaves in zip(*rows, strict=True))
            replay = each.add(replay, sac.Transitions(*stacked))
            between = time.perf_counter()
            if episode > first:  # the first of this process makes robots and compiles
                took[:2] += between - began, k * options.call
            now = done + options.call
            if now < options.random_steps:
                continue
            count = options.random_steps if now == options.random_steps else options.call
            for part in range(0, count, options.call):
                agent, told = each.learn(agent, replay, each.keys(key, 1 + part, done))
                seen_here.append(told)
            jax.block_until_ready(agent)
            if trained:
                took[2:] += time.perf_counter() - between, count
            trained = True
        ends.append((success, returns))
        if (episode + 1) % options.evaluate:
            continue
        point = (episode + 1) // options.evaluate - 1
        found = evaluate(options, seed, lanes, functools.partial(each.mean, agent.actor))
        curves.success[point] = found
        curves.trained[point], curves.returns[point] = np.mean(ends, axis=0)
        if seen_here:
            for field in ("losses", "task_weights", "entropy"):
                every = np.concatenate([np.asarray(getattr(told, field)) for told in seen_here])
                getattr(curves, field)[point] = every.mean(axis=0)
        curves.alpha[point] = np.exp(np.asarray(agent.log_alpha))
        seen_here, ends = [], []
        state = Saved(agent, replay, scale, curves, took)
        save(episode + 1, state)
        steps = (episode + 1) * options.horizon
        tell(f"{steps} steps, {100 * found.mean():.0f}%")
    return curves, took, functools.partial(each.mean, agent.actor)


def played(
    options: argparse.Namespace, seed: int, lanes: Any, act: Callable[[Array], Any], goal: int = 0
) -> Iterator[Array]:
    """Plays an episode: before each of its steps, and at its end, who has succeeded, ``[K]``."""
    observations = lanes.reset(GOALS_OF + seed, goal)
    success = np.zeros(len(options.tasks), bool)
    yield success
    for _ in range(options.horizon):
        observations, _, succeeds = lanes.step(np.asarray(act(observations)))
        success = success | succeeds
        yield success


def evaluate(
    options: argparse.Namespace, seed: int, lanes: Any, act: Callable[[Array], Any]
) -> Array:
    """The share of episodes that succeed at any step, ``[K]``, on robots of its own."""
    own, found = lanes._replace(kind="evaluate"), []
    for episode in range(options.episodes):
        *_, success = played(options, seed, own, act, episode)
        found.append(success)
    share: Array = np.mean(found, axis=0)
    return share


def film(options: argparse.Namespace, seed: int, lanes: Any, act: Callable[[Array], Any]) -> Array:
    """Frames of an episode, equally far apart, ``[frames, K, SIDE, SIDE, 3]``.

    Who has succeeded by then has a green edge.
    """
    own, found = lanes._replace(kind="frames"), []
    moments = np.linspace(options.horizon, 0, options.frames).astype(int)
    inside = np.zeros((_metaworld.SIDE - 2 * EDGE, _metaworld.SIDE - 2 * EDGE), bool)
    edge = np.pad(inside, EDGE, constant_values=True)
    for step, success in enumerate(played(options, seed, own, act)):
        if step in moments:
            found.append(own.frames())
            found[-1][success[:, None, None] & edge] = GREEN
    return np.stack(found)


# --- What came of it ------------------------------------------------------------------------------


def summarize(runs: Runs) -> dict[str, Any]:
    """The last evaluation, by task, and the curves."""
    settings = runs.facts["settings"]
    tasks = settings["tasks"]

    def figures(name: str) -> dict[str, Any]:
        own = {field: curve[0] for field, curve in runs.arrays[name].items()}  # [seeds, points, K]
        last = 100 * own["success"][:, -1]
        found = {
            "success_by_task": dict(zip(tasks, last.mean(axis=0), strict=True)),
            "success": _statistics.estimate(last.mean(axis=1)),
            "success_by_seed": last.mean(axis=1),
            "curve": 100 * own["success"].mean(axis=(0, 2)),
        }
        if "frames" in own:
            found["frames"] = own["frames"][0]
        weights = ["task_weights"] if METHODS[name].has_logits else []
        for field in ("losses", *weights, "alpha", "entropy", "returns"):
            found[field] = own[field].mean(axis=0)
            found[f"last_{field}"] = dict(zip(tasks, found[field][-1], strict=True))
        return found

    return {
        "settings": {key: settings[key] for key in ("preset", "network", "steps", "horizon")},
        "tasks": tasks,
        "seeds": len(next(iter(runs.facts["arms"].values()))["seeds"]),
        "per_second": runs.facts["problem"]["per_second"],
        "methods": {name: figures(name) for name in METHODS if name in runs.arrays},
    }


PAPER_STEPS = 2_000_000


def tables(summary: Summary) -> list[Any]:
    """Success at the last evaluation; what the methods weighed there."""
    tasks, methods, rates = summary["tasks"], summary["methods"], summary["per_second"]
    headers = [_metaworld.TASKS[task] for task in tasks]
    table = _tables.new("Success (%) at the last evaluation", ["method"],
                        [*headers, "mean\n± s.e."])  # fmt: skip
    weighs = any(METHODS[name].has_logits for name in methods)
    title = "Task weights then (%), and the critics' losses" if weighs else "Critics' losses then"
    weights = _tables.new(title, ["method"], headers)
    for name, each in methods.items():
        cells = (f"{each['success_by_task'][task]:.0f}" for task in tasks)
        table.add_row(name, *cells, _tables.with_error(each["success"], space=""))
        if METHODS[name].has_logits:
            weights.add_row(
                name, *(f"{100 * each['last_task_weights'][task]:.1f}" for task in tasks)
            )
        weights.add_row(f"{name}, loss", *(_short(each["last_losses"][task]) for task in tasks))
    hours = PAPER_STEPS * (len(tasks) / rates["robot_steps"] + 1 / rates["updates"]) / 3600
    seeds = f"{summary['seeds']} seeds" if summary["seeds"] > 1 else "one seed"
    told = (
        f"A demonstration, of {seeds}: it compares nothing. {summary['settings']['steps']:,} steps "
        f"of each robot; {rates['robot_steps']:,.0f} steps of robots and {rates['updates']:,.1f} "
        f"updates a second, at which {PAPER_STEPS:,} steps of each take {hours:,.1f} hours a seed."
    )
    return [table, told, weights]


def _short(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def draw(summary: Summary) -> Any:
    """Success over steps; of one method losses, weights and temperatures of each task.

    Without weights where no method has logits.
    """
    from matplotlib import colormaps

    methods, tasks, settings = summary["methods"], summary["tasks"], summary["settings"]
    points = len(next(iter(methods.values()))["curve"])
    steps = settings["steps"] * np.arange(1, points + 1) / points
    name = _shown(methods)
    colours = colormaps["viridis"](np.linspace(0, 0.9, len(tasks)))
    figure: Any
    with _plots.picture(height=5.6) as figure:
        (success, losses), (weights, alphas) = figure.subplots(2, 2)
        curves = {
            each: (np.array(own["curve"]), METHODS[each].colour) for each, own in methods.items()
        }
        _plots.lines(success, steps, curves)
        success.set_title("success, mean over tasks (%)")
        panels = {"losses": losses, "task_weights": weights, "alpha": alphas}
        titles = {"losses": "critics' losses", "task_weights": "task weights",
                  "alpha": "temperatures"}  # fmt: skip
        for field, axes in panels.items():
            if field not in methods[name]:
                axes.set_axis_off()
                continue
            values = np.array(methods[name][field])
            if field != "task_weights":
                axes.set_yscale("log")
            series = dict(zip(tasks, zip(values.T, colours, strict=True), strict=True))
            _plots.lines(axes, steps, series)
            axes.set_title(f"{titles[field]} of {name}")
        for axes in (weights, alphas):
            axes.set_xlabel("steps of each robot")
    return figure


def _shown(methods: Mapping[str, Any]) -> str:
    """The first of those whose logits move, or of all."""
    return next((each for each in methods if METHODS[each].learns), next(iter(methods)))


def draw_frames(summary: Summary) -> Any:
    """An episode of each robot, from above to below, where frames were drawn."""
    name = _shown(summary["methods"])
    frames, tasks = summary["methods"][name].get("frames"), summary["tasks"]
    if frames is None:
        return None
    columns = max(len(tasks), 5)  # few would be as large as posters
    with _plots.picture(height=8.5 * len(frames) / columns + 0.6) as figure:
        grid = figure.subplots(len(frames), columns, squeeze=False)
        for axes in grid.ravel():
            axes.set_axis_off()
        for moment, row in zip(frames, grid, strict=True):
            for frame, axes in zip(moment, row, strict=False):
                axes.imshow(frame)
        for task, axes in zip(tasks, grid[0], strict=False):
            axes.set_title(_metaworld.TASKS[task], fontsize=8, loc="center")
        figure.supxlabel(f"{name}, first seed; downwards the steps of an episode. Green: succeeded",
                         fontsize=8)  # fmt: skip
    return figure


STUDY = Study(
    name="mt10",
    title="MT10: ten robots by soft actor-critic, as in the paper (Meta-World)",
    seconds=1550,
    full=f"--preset small --tasks {' '.join(_metaworld.TASKS)} --network mtsac --horizon 150 "
    "--goals 1 --frames 0 --seeds 1 --first-seed 0 --scope critics --methods ls famo",
    quick="--tasks reach drawer-close window-close --horizon 50 --evaluate 3 --steps 300 "
    "--random-steps 100 --batch-size 16 --width 64",
    run=run,
    summarize=summarize,
    tables=tables,
    pictures={"mt10.png": draw, "mt10_robots.png": draw_frames},
    options=OPTIONS,
    curves=frozenset({"frames", "losses", "task_weights", "alpha", "entropy", "returns"}),
    epilog=described(METHODS),
    check=check,
)
main = functools.partial(_command.main, STUDY)

if __name__ == "__main__":
    main()
