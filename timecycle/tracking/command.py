"""The command `timecycle track`: options, what they select, and the run."""




DESCRIPTION = """Track objects through a video: from a mask, a box, points or polygons of one frame to masks of all
frames. Object ids, frames and pixels count from 0; a mask of a later frame corrects its objects or adds new ones."""
EXAMPLES = """
timecycle track clip.mp4 -o out/clip --box 120,80,200,150
timecycle track clip.mp4 -o out/clip --mask first.png --mask again.png@143 --csv --overwrite
"""
