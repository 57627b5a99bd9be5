"""Meta-World's robots: environments and scripted experts, in processes of their own.

The simulator (Yu et al. 2020; package ``metaworld``, extra of the same name) is imported by these
processes alone. Each makes an environment when it is first asked for and keeps it. An episode ends
with its first success, or after ``HORIZON`` steps. Goals, with where the objects lie, are
Meta-World's own, 50 of a seed, and the policy sees them.

Frames are drawn by MuJoCo. Without a display it needs a library that draws into memory:
``MUJOCO_GL=egl`` or ``MUJOCO_GL=osmesa``, of Debian's packages ``libegl1`` and ``libosmesa6``.
"""

import contextlib
import functools
import importlib.util
import itertools
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

PACKAGE = "metaworld"
# Of MT10, in its order, with what a narrow table calls them.
TASKS = {
    "reach": "reach",
    "push": "push",
    "pick-place": "pick",
    "door-open": "door",
    "drawer-open": "draw\nopen",
    "drawer-close": "draw\nshut",
    "button-press-topdown": "butt",
    "peg-insert-side": "peg",
    "window-open": "wind\nopen",
    "window-close": "wind\nshut",
}
OBSERVATION, ACTION = 39, 4
GOALS = 50  # that Meta-World draws of a seed
CAMERA, SIDE = "corner4", 200  # of a frame, in pixels. The camera is mounted upside down
HORIZON = 200  # steps. The experts need about 80, and more than 150 where they have to try again


def require() -> None:
    """Refuses to go on without the simulator.

    Raises:
      OSError: It is not installed.
    """
    if importlib.util.find_spec(PACKAGE) is None:
        raise OSError(
            f'{PACKAGE} is not installed: pip install "famo_jax[{PACKAGE}]" brings the simulator'
        )


# --- Processes ------------------------------------------------------------------------------------


@contextlib.contextmanager
def processes(count: int | None = None) -> Iterator[ProcessPoolExecutor]:
    """Processes in which the functions below can be run. None outlives the block, or this program.

    Raises:
      OSError: One of them has died.
    """
    spawn = multiprocessing.get_context("spawn")  # a fork would share JAX's threads and their locks
    count = count or os.cpu_count() or 1
    with ProcessPoolExecutor(count, spawn, _begin) as pool:
        try:
            with _interrupts_waiting():
                for _ in range(count):
                    pool.submit(os.getpid)  # starts one
            yield pool
        except BrokenProcessPool as error:
            raise OSError("a process of the simulator died, for want of memory perhaps") from error
        finally:
            pool.shutdown(cancel_futures=True)  # and waits: what it began ends first


@contextlib.contextmanager
def _interrupts_waiting() -> Iterator[None]:
    """Until the end of the block; in processes that it starts, for good."""
    seen: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: seen.append(number))
    blocks = hasattr(signal, "pthread_sigmask")  # not on Windows
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if blocks else set()
    try:
        yield
    finally:
        if blocks:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, before)
    if seen and callable(before):
        before(signal.SIGINT, None)


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its processes
    warnings.filterwarnings("ignore")  # of Gymnasium about precision, of the experts about gains
    parent = multiprocessing.parent_process()
    assert parent

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


# --- In these processes ---------------------------------------------------------------------------


@functools.cache
def goals(task: str, seed: int) -> Sequence[Any]:
    """Where things lie and are to go: what an environment's ``set_task`` takes."""
    import metaworld

    found: Sequence[Any] = metaworld.MT1(f"{task}-v3", seed=seed).train_tasks
    return found


@functools.cache
def robot(task: str, kind: str = "", rewards: str = "v2") -> Any:
    """The environment of a task, one of each kind."""
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    del kind
    return ALL_V3_ENVIRONMENTS[f"{task}-v3"](reward_function_version=rewards)


@functools.cache
def renderer(task: str, kind: str, rewards: str) -> Any:
    """What draws a robot."""
    import mujoco

    return mujoco.Renderer(robot(task, kind, rewards).unwrapped.model, SIDE, SIDE)


class Episodes(NamedTuple):
    """What an expert has shown of a task, one episode after another."""

    observations: Array  # [steps, 39], float32
    actions: Array  # [steps, 4], float32: what the expert wants, not clipped, without the noise
    lengths: Array  # [episodes], int32
    success: Array  # [episodes], bool


def record(task: str, seed: int, episodes: int, noise: float) -> Episodes:
    """The scripted expert, whose actions are disturbed by normal noise of this deviation.

    So it also shows how to come back to its way.
    """
    from metaworld.policies import ENV_POLICY_MAP

    expert, rng = ENV_POLICY_MAP[f"{task}-v3"](), np.random.default_rng(seed)
    seen: list[Array] = []
    wanted: list[Array] = []

    def act(observation: Array) -> Array:
        action = np.asarray(expert.get_action(observation))
        seen.append(observation.astype(np.float32))
        wanted.append(action.astype(np.float32))
        return action + noise * rng.normal(size=ACTION)

    ends = [run(task, seed, goal, act) for goal in range(episodes)]
    lengths, success = zip(*ends, strict=True)
    return Episodes(np.array(seen), np.array(wanted), np.array(lengths, np.int32),
                    np.array(success))  # fmt: skip


def roll_out(task: str, seed: int, episodes: int, layers: Sequence[Array]) -> Array:
    """Whether a network succeeds, ``[episodes]``, on as many of a seed's goals.

    Its layers are kernels and biases in turn, with ReLU between them.
    """
    layers = [layer.astype(np.float64) for layer in layers]
    act = functools.partial(forward, layers)
    return np.array([run(task, seed, goal, act)[1] for goal in range(episodes)])


def forward(layers: Sequence[Array], inputs: Array) -> Array:
    """``[..., inputs]`` to ``[..., outputs]``: a network without a device, a row at a time."""
    for kernel, bias in zip(layers[0::2], layers[1::2], strict=True):
        outputs = inputs @ kernel + bias
        inputs = np.maximum(outputs, 0)
    return np.asarray(outputs)


def run(task: str, seed: int, goal: int, act: Any) -> tuple[int, bool]:
    """An episode: its steps, and whether it succeeded."""
    env = robot(task)
    env.set_task(goals(task, seed)[goal])
    observation, _ = env.reset()
    for step in range(HORIZON):
        action = _valid(act(observation))
        observation, _, _, _, told = env.step(action)
        if told["success"]:
            return step + 1, True
    return HORIZON, False


def _valid(action: Array) -> Array:
    # What is no number would upset the simulator.
    return np.asarray(np.clip(np.nan_to_num(action), -1, 1))


# --- Lanes ----------------------------------------------------------------------------------------


class Step(NamedTuple):
    """What a step of K robots brings."""

    observations: Array  # [K, 39], float32
    rewards: Array  # [K], float32
    success: Array  # [K], bool


class Lanes(NamedTuple):
    """A robot of each task, which step side by side.

    They start an episode together and end it when they are told to start another, so that what
    comes of a step is never that of an episode after it.
    """

    parts: list[tuple[ProcessPoolExecutor, list[str]]]
    kind: str  # robots of another kind are other robots
    rewards: str  # "v1" or "v2"

    def reset(self, seed: int, goal: int) -> Array:
        """``[K, 39]``: all to the same number of a seed's goals."""
        jobs = [
            pool.submit(reset_each, tasks, self.kind, self.rewards, seed, goal)
            for pool, tasks in self.parts
        ]
        return np.concatenate([job.result() for job in jobs])

    def step(self, actions: Array) -> Step:
        """By actions ``[K, 4]``."""
        ends = np.cumsum([len(tasks) for _, tasks in self.parts])[:-1]
        jobs = [
            pool.submit(step_each, tasks, self.kind, self.rewards, own)
            for (pool, tasks), own in zip(self.parts, np.split(actions, ends), strict=True)
        ]
        steps = [job.result() for job in jobs]
        return Step(*(np.concatenate(leaves) for leaves in zip(*steps, strict=True)))

    def frames(self) -> Array:
        """What each looks like now, uint8, ``[K, SIDE, SIDE, 3]``.

        Raises:
          OSError: MuJoCo cannot draw here.
        """
        jobs = [
            pool.submit(frame_each, tasks, self.kind, self.rewards) for pool, tasks in self.parts
        ]
        return np.concatenate([job.result() for job in jobs])


@contextlib.contextmanager
def lanes(tasks: Sequence[str], rewards: str = "v2", count: int | None = None) -> Iterator[Lanes]:
    """In at most ``count`` processes; of kind "train".

    Raises:
      OSError: One of them has died.
    """
    require()
    count = min(count or os.cpu_count() or 1, len(tasks))
    cuts = [len(tasks) * part // count for part in range(count + 1)]
    with contextlib.ExitStack() as stack:
        parts = [
            (stack.enter_context(processes(1)), list(tasks[first:last]))
            for first, last in itertools.pairwise(cuts)
        ]
        yield Lanes(parts, "train", rewards)


def reset_each(tasks: Sequence[str], kind: str, rewards: str, seed: int, goal: int) -> Array:
    """Starts an episode of each."""
    observations = []
    for task in tasks:
        env = robot(task, kind, rewards)
        env.set_task(goals(task, seed)[goal])
        observations.append(env.reset()[0])
    return np.array(observations, np.float32)


def step_each(tasks: Sequence[str], kind: str, rewards: str, actions: Array) -> Step:
    """A step of each."""
    pairs = zip(tasks, actions, strict=True)
    told = [robot(task, kind, rewards).step(_valid(own)) for task, own in pairs]
    observations, gains, _, _, more = zip(*told, strict=True)
    return Step(
        np.array(observations, np.float32),
        np.array(gains, np.float32),
        np.array([bool(each["success"]) for each in more]),
    )


def frame_each(tasks: Sequence[str], kind: str, rewards: str) -> Array:
    """A picture of each."""
    frames = []
    try:
        for task in tasks:
            draws = renderer(task, kind, rewards)
            draws.update_scene(robot(task, kind, rewards).unwrapped.data, camera=CAMERA)
            frames.append(draws.render()[::-1, ::-1])
    except Exception as error:  # of whatever kind: it depends on the library
        sys.unraisablehook = lambda _: None  # what is half made complains when it is given up
        own = os.environ.get("MUJOCO_GL", "")
        raise OSError(
            f"MuJoCo can draw no frames with MUJOCO_GL={own!r} ({error}): without a display set it "
            'to "egl" or "osmesa", which need libegl1 or libosmesa6'
        ) from error
    return np.array(frames)
