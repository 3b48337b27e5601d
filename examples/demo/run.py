"""`make demo`: train two masks, serve them on one base model, and watch them answer.

Both masks are trained by SFT with the paper's learning rate, sharpness, regularizer and
initialization. Steps, batch and calibration prompts are the demo's own, and fewer than the
paper's (400 steps a task, 2,048 prompts), so that it ends in minutes on two cores.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

import answers
import bmt_core
from display import Display
from errors import DemoError
from model import ROOT, ModelError, demo_model
from processes import clear_environment, end_like_ctrl_c
from serving import Server
from training import tasks, train

WORK = ROOT / ".bmt" / "demo"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reuse", action="store_true", help="keep masks of an earlier run")
    parser.add_argument("--record", type=Path, help="also save the answers as an SVG picture")
    options = parser.parse_args()
    show = Display()
    try:
        end_like_ctrl_c()
        demo(show, options.reuse, options.record is not None)
    except (DemoError, ModelError, bmt_core.BmtError) as error:
        show.say(f"demo: {error}")
        return 1
    except KeyboardInterrupt:
        show.say("demo: interrupted; nothing is left running")
        return 130
    if options.record:
        show.save_picture(options.record, title="make demo")
    return 0


def demo(show: Display, reuse: bool, record: bool) -> None:
    clear_environment()
    # Other libraries' bars would break into the demo's own display.
    os.environ.setdefault("TQDM_DISABLE", "1")
    # Nothing is looked up on the Hub unless the model is there.
    os.environ.setdefault("HF_HUB_OFFLINE", "0" if os.environ.get("BMT_DEMO_MODEL") else "1")
    WORK.mkdir(parents=True, exist_ok=True)
    with show.phase("The base model"):
        with show.waiting("at its first use, dequantized from what the set-up brought"):
            model = demo_model()
        show.say(model)
    name = Path(model).name
    each = tasks(WORK)
    for task in each:
        with show.phase(f"Training mask {task.name}: {task.settings['dataset']}"):
            show.say(
                "steps, batch and calibration prompts are the demo's own, fewer than the paper's"
            )
            if reuse and task.mask.exists():
                show.say(f"kept {task.mask}")
            else:
                train(task, model)
    # The registry is the demo's alone; each run begins with an empty one.
    shutil.rmtree(WORK / "server", ignore_errors=True)
    with Server(model, name, WORK / "server") as server:
        with show.phase("Starting the server with its embedded registry"):
            with show.waiting("starting") as tick:
                address = server.wait(tick)
            show.say(f"ready at {address.url}")
        with show.phase("Uploading with bmt-client"):
            for task in each:
                answers.upload(show, address, task.mask, task.name)
        if record:
            show.start_picture()
        with show.phase("One batch: the same prompts to the base and to both masks"):
            answers.compare(show, address, name, each)
        with show.phase("Accuracy on held-out examples (exact match)"):
            answers.measure(show, address, name, each)
        with show.phase("Replacing a mask while one of its streams runs"):
            answers.replace(show, address, each[0])
        with show.phase("Stopping the server"):
            show.say(f"stopped cleanly (exit code {server.stop()})")
    show.summary()
    show.show("\nNext: [b]make serve[/], README.md")


if __name__ == "__main__":
    sys.exit(main())
