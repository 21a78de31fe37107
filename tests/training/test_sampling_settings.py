"""Sampling settings: refused values and their messages."""

import math

import pytest

from robometer_gym.training import SamplingSettings


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"max_frames": 1}, "max_frames must be an integer >= 2, got 1"),
        ({"max_frames": 0}, "max_frames must be an integer >= 2, got 0"),
        ({"max_frames": -3}, "max_frames must be an integer >= 2, got -3"),
        ({"max_frames": 8.0}, "max_frames must be an integer >= 2, got 8.0"),
        ({"max_frames": True}, "max_frames must be an integer >= 2, got True"),
        ({"max_frames": "8"}, "max_frames must be an integer >= 2, got '8'"),
        ({"success_rule": "relased"}, r"success_rule must be one of \('done', .*got 'relased'"),
        ({"success_rule": None}, r"success_rule must be one of \('done', 'released'\), got None"),
        ({"preference_share": -0.1}, r"preference_share must be in \[0, 1\], got -0.1"),
        ({"preference_share": 1.1}, r"preference_share must be in \[0, 1\], got 1.1"),
        ({"preference_share": math.nan}, r"preference_share must be in \[0, 1\], got nan"),
        (
            {"pair_ratios": {"rewound": 1.0}},
            "pair_ratios must give finite ratios .* got {'rewound'",
        ),
        ({"pair_ratios": {"forward": 1.0}}, "pair_ratios must give finite ratios >= 0 for some of"),
        (
            {"pair_ratios": {"rewind": 1.0, "reverse": -1.0}},
            "pair_ratios must give finite ratios >= 0",
        ),
        ({"pair_ratios": {}}, "pair_ratios must have a ratio above 0, got {}"),
        ({"pair_ratios": {"rewind": 0.0}}, "pair_ratios must have a ratio above 0, got {'rewind'"),
        ({"pair_ratios": {"rewind": math.nan}}, "pair_ratios must .*, got {'rewind': nan}"),
        ({"pair_ratios": {"rewind": math.inf}}, "pair_ratios must give .*, got {'rewind': inf}"),
        ({"clip_ratios": {"forward": math.inf}}, "clip_ratios must give .*, got {'forward': inf}"),
        ({"clip_ratios": {"forward": math.nan}}, "clip_ratios must .*, got {'forward': nan}"),
        ({"clip_ratios": {"different_expertise": 1.0}}, "clip_ratios must give finite ratios >= 0"),
        (
            {"clip_ratios": {"forward": -1.0}},
            "clip_ratios must give finite ratios >= 0 for some of",
        ),
        ({"clip_ratios": {"forward": 0.0}}, "clip_ratios must have a ratio above 0, got"),
    ],
)
def test_bad_settings_raise(bad, message):
    """A typing error would be trained with for hours before it is noticed."""
    with pytest.raises(ValueError, match=message):
        SamplingSettings(**bad)
