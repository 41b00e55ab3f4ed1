"""The main job on real text, with nothing to download."""

from compass.demo.local import demo
from compass.demo.report import DemoReport
from compass.demo.run import run_demo

__all__ = ["DemoReport", "demo", "run_demo"]
