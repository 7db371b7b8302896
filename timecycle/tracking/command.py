"""The command `timecycle track`: options, what they select, and the run."""

import argparse
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from timecycle.data.images import jpeg_bytes
from timecycle.data.masks import object_ids
from timecycle.data.source import Frame, frame_of
from timecycle.errors import InputError, listing
from timecycle.evaluation.davis.options import add_method_options, choose_device, choose_features, choose_protocol
from timecycle.files import write_bytes
from timecycle.locks import owned
from timecycle.progress import Progress, say
from timecycle.propagation.confidence import Lost
from timecycle.tracking.folder import WORK, OutputFolder
from timecycle.tracking.outputs import Outputs, Wishes
from timecycle.tracking.prompt_words import box_prompt, mask_prompt, points_prompt, polygon_prompt
from timecycle.tracking.run import Span, Step, TrackingRun
from timecycle.tracking.tracker import Tracker
from timecycle.viewing.overlays import Style, caption_of, paint

DESCRIPTION = """Track objects through a video: from a mask, a box, points or polygons of one frame to masks of all
frames. Object ids, frames and pixels count from 0; a mask of a later frame corrects its objects or adds new ones."""
EXAMPLES = """
timecycle track clip.mp4 -o out/clip --box 120,80,200,150
timecycle track clip.mp4 -o out/clip --mask first.png --mask again.png@143 --csv --overwrite
"""
