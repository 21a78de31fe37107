"""Text of the prompts, as in training, and the chat template that writes the same.

Written as Qwen3-VL's chat template does, so that the result does not depend on a template file or
on a version of transformers. Knows nothing of tokens.
"""

from __future__ import annotations

__all__ = [
    "CHAT_TEMPLATE",
    "PHRASES",
    "image_label",
    "image_text",
    "preference_prompt",
    "progress_prompt",
]

# The wording is part of the checkpoint: robometer/data/collators/rbm_heads.py:378 and 482-513 at
# c7f38e2. {task} is put in once, by replace, so that braces in a task stay as they are.
_PROGRESS_PROMPT = (
    "The task for the robot is '{task}'. Given the trajectory video, predict the task progress at "
    "each frame, how far along the robot is towards completing the task, a float between 0 and 1, "
    "where 0 is the starting state and 1 is when the task is completed. If the robot is not "
    "performing the same task, predict 0 progress."
)
_PREFERENCE_PROMPT = (
    "Given these two trajectories for the task '{task}', evaluate which one makes more progress "
    "towards the task. Return A for the first trajectory and B for the second trajectory."
)
_PREFERENCE_WITH_PROGRESS = (
    " Also predict the task progress at each frame of the first trajectory, how far along the "
    "robot is towards completing the task, a float between 0 and 1, where 0 is the starting state "
    "and 1 is when the task is completed. If the robot is not performing the same task, predict 0 "
    "progress."
)

_USER, _FIRST, _SECOND = "user\n", "This is Trajectory A. ", "This is Trajectory B. "
_PREFERENCE_REQUEST = "Now predict the preference between the two trajectories."

PHRASES = (
    _USER,
    *_PROGRESS_PROMPT.split("{task}"),
    *_PREFERENCE_PROMPT.split("{task}"),
    _PREFERENCE_WITH_PROGRESS,
    _FIRST,
    _SECOND,
    _PREFERENCE_REQUEST,
)
"""All text in prompts, except the tasks and the numbers of the images."""

# Makes transformers' processor write the same prompts: LeRobot's encoder uses it.
CHAT_TEMPLATE = """\
{%- set seen = namespace(images=0) -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.content is string -%}{{- message.content -}}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'image' -%}
{%- set seen.images = seen.images + 1 -%}
{%- if add_vision_id -%}{{- 'Picture ' ~ seen.images ~ ': ' -}}{%- endif -%}
{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- else -%}{{- part.text -}}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


def progress_prompt(task: str) -> str:
    """Return the text of a progress prompt before its first image."""
    return f"<|im_start|>{_USER}{_PROGRESS_PROMPT.replace('{task}', task)}"


def image_label(number: int) -> str:
    """Return the label of an image; images are numbered from 1 through a prompt."""
    return f"Picture {number}: "


def image_text(tokens: int) -> str:
    """Return the text of an image of `tokens` tokens, up to its readout token."""
    return f"<|vision_start|>{'<|image_pad|>' * tokens}<|vision_end|><|prog_token|>"


def preference_prompt(task: str, *, with_progress: bool) -> tuple[str, str, str]:
    """Return the text of a preference prompt before, between and after the images of A and B."""
    request = _PREFERENCE_PROMPT.replace("{task}", task)
    also = _PREFERENCE_WITH_PROGRESS if with_progress else ""
    return (
        f"<|im_start|>{_USER}{request}{also}{_FIRST}",
        f"<|split_token|>{_SECOND}",
        f"{_PREFERENCE_REQUEST}<|pref_token|>",
    )
