"""What every test runs under: repeatable random numbers, no time limit per hypothesis example, no network."""

from __future__ import annotations

import os

import hypothesis

os.environ["HF_HUB_OFFLINE"] = "1"  # a test that would download must fail at once

hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis.settings.load_profile("repeatable")
