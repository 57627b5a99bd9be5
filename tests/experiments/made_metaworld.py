"""A package `metaworld` for tests that have no simulator: points that are to go to goals.

It is written into a folder, which the processes of the simulator find as this one does. A task's
expert is as strong as its name is long. An observation holds the point first and the goal last.
"""

VERSIONS = {"metaworld": "0.0.1", "mujoco": "0.0.1"}

PACKAGE = """
import os
from typing import NamedTuple
import numpy as np

FAR = 0.1  # from a goal, where an episode succeeds


class Task(NamedTuple):
    env_name: str
    start: np.ndarray
    goal: np.ndarray


class MT1:
    def __init__(self, name, seed):
        rng = np.random.default_rng([seed, len(name)])
        self.train_tasks = [Task(name, *rng.uniform(-1, 1, (2, 3))) for _ in range(50)]


class Point:
    max_path_length = 500
    model = None

    @property
    def unwrapped(self):
        return self

    @property
    def data(self):
        return self

    def __init__(self, reward_function_version="v2"):
        self.unit = {"v1": 10, "v2": 1}[reward_function_version]

    def set_task(self, task):
        self.task = task

    def observation(self):
        return np.concatenate([self.at, np.zeros(33), self.task.goal])

    def reset(self):
        self.at, self.steps = self.task.start.copy(), 0
        return self.observation(), {}

    def step(self, action):
        if os.environ.get("MADE_METAWORLD_DIES"):
            os._exit(1)
        assert np.abs(action).max() <= 1
        self.steps += 1
        self.at = self.at + 0.05 * np.asarray(action)[:3]
        distance = float(np.linalg.norm(self.at - self.task.goal))
        told = {"success": float(distance < FAR)}
        return self.observation(), -self.unit * distance, False, False, told
"""

# Its camera hangs upside down, as Meta-World's: what moves to the left goes right in the picture.
MUJOCO = """
import os
import numpy as np


class FatalError(Exception):
    pass


class Renderer:
    def __init__(self, model, height, width):
        if os.environ.get("MUJOCO_GL") != "osmesa":
            raise FatalError("no context")
        self.shape = height, width

    def update_scene(self, data, camera):
        assert camera == "corner4"
        self.at = data.at

    def render(self):
        picture = np.zeros((*self.shape, 3), np.uint8)
        row, column = ((1 - self.at[:2].clip(-1, 1)) / 2 * (np.array(self.shape) - 1)).astype(int)
        picture[row, column] = 255, 0, 0
        return picture
"""

FILES = {
    "__init__.py": PACKAGE,
    "env_dict.py": """
import metaworld


class All(dict):
    def __missing__(self, name):
        return metaworld.Point


ALL_V3_ENVIRONMENTS = All()
""",
    "policies.py": """
import numpy as np


class All(dict):
    def __missing__(self, name):
        return lambda: Expert(len(name))


class Expert:
    def __init__(self, strength):
        self.strength = strength

    def get_action(self, observation):
        return np.append(self.strength * (observation[-3:] - observation[:3]), 0.5)


ENV_POLICY_MAP = All()
""",
}


def write(folder):
    """Into a folder, which then belongs on `sys.path`."""
    (folder / "metaworld").mkdir(parents=True)
    (folder / "mujoco.py").write_text(MUJOCO)
    for name, text in FILES.items():
        (folder / "metaworld" / name).write_text(text)
    for name, version in VERSIONS.items():
        about = folder / f"{name}-{version}.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
    return folder
