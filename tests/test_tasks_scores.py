"""PCK, mIoU and TAP-Vid's scores against arrays small enough to score by hand."""

import math

import numpy as np
import pytest

from timecycle.evaluation.metrics import (
    area_pck,
    class_iou,
    confusion,
    mean_point_scores,
    point_scores,
    pose_distances,
    pose_pck,
)

NAN = math.nan


def test_pose_distances_are_in_units_of_0_6_diagonals():
    # A box of 3 x 4 has the diagonal 5, and 0.6 of it is 3.
    annotated = np.array([[[0.0, 0], [3, 4], [1, 1]]])
    predicted = np.array([[[0.3, 0], [3, 4.75], [1, 1]]])
    np.testing.assert_allclose(pose_distances(predicted, annotated), [[0.1, 0.25, 0]])


def test_a_lost_joint_is_not_scored_and_not_in_the_box():
    annotated = np.array([[[0.0, 0], [3, 4], [100, 100]]])
    predicted = np.array([[[0.3, 0], [3, 4], [NAN, NAN]]])
    np.testing.assert_allclose(pose_distances(predicted, annotated), [[0.1, 0, NAN]])


def test_a_box_without_size_finds_nothing_and_no_joints_are_no_box():
    annotated = np.array([[[1.0, 1], [5, 5]], [[1, 1], [5, 5]]])
    predicted = np.array([[[1.0, 1], [NAN, NAN]], [[NAN, NAN], [NAN, NAN]]])
    np.testing.assert_array_equal(pose_distances(predicted, annotated), [[math.inf, NAN], [NAN, NAN]])


def test_pose_pck_includes_the_threshold_and_leaves_out_what_is_lost():
    distances = np.array([[0.1, 0.3, NAN], [0.15, 0.2, NAN], [NAN, 0.05, NAN]])
    np.testing.assert_allclose(pose_pck(distances, 0.1), [1 / 2, 1 / 3, NAN])
    np.testing.assert_allclose(pose_pck(distances, 0.2), [1, 2 / 3, NAN])


def test_area_pck_excludes_the_threshold():
    # Areas of 100 and 25 pixels: within 2 and within 1.
    annotated = np.zeros((2, 3, 2))
    predicted = np.array([[[1.9, 0], [0, 2], [0, 0]], [[0.6, 0.6], [NAN, NAN], [0, 1.5]]])
    visible = np.array([[True, True, False], [True, True, True]])
    # Correct: the first of each frame. Wrong: one at the threshold, one lost, one too far.
    assert area_pck(predicted, annotated, visible, np.array([100, 25])) == pytest.approx(2 / 5)
    assert math.isnan(area_pck(predicted, annotated, visible & False, np.array([100, 25])))


def test_iou_comes_from_one_confusion_matrix():
    annotation = np.array([[0, 0, 1, 1], [2, 2, 255, 255]], np.uint8)
    prediction = np.array([[0, 1, 1, 1], [2, 0, 1, 2]], np.uint8)
    counts = confusion(annotation, prediction, 4)
    np.testing.assert_array_equal(counts, [[1, 1, 0, 0], [0, 2, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]])
    np.testing.assert_allclose(class_iou(counts), [1 / 3, 2 / 3, 1 / 2, NAN])


def test_point_scores():
    # Three points in three frames, queried in frames 0, 0 and 1: five positions count.
    occluded = np.array([[False, False, False], [False, False, True], [True, False, False]])
    said = np.array([[False, False, True], [False, False, False], [False, False, False]])
    away = np.array([[0, 0.5, 0.5], [0, 3, 0], [90, 0, 20]])
    points = np.zeros((3, 3, 2))
    found = point_scores(np.array([0, 0, 1]), points, occluded, np.stack([away, 0 * away], axis=2), said)
    # Visible: 0.5, 0.5 (predicted occluded), 3, 20. Predicted visible: 0.5, 3, an occluded one, 20.
    assert found.within == pytest.approx({1: 2 / 4, 2: 2 / 4, 4: 3 / 4, 8: 3 / 4, 16: 3 / 4})
    assert found.average_within == pytest.approx(3.25 / 5)
    # Hits 1 or 2; the other points predicted visible are false positives.
    assert found.jaccard == pytest.approx({1: 1 / 7, 2: 1 / 7, 4: 2 / 6, 8: 2 / 6, 16: 2 / 6})
    assert found.average_jaccard == pytest.approx((2 / 7 + 1) / 5)
    assert found.occlusion_accuracy == pytest.approx(3 / 5)


def test_a_distance_of_the_threshold_is_too_far():
    points, nothing = np.zeros((1, 2, 2)), np.zeros((1, 2), bool)
    found = point_scores(np.array([0]), points, nothing, points + np.array([0, 4]), nothing)
    assert found.within == {1: 0, 2: 0, 4: 0, 8: 1, 16: 1}


def test_a_video_with_nothing_to_count_is_left_out_of_the_mean():
    points, visible = np.zeros((1, 2, 2)), np.zeros((1, 2), bool)
    good = point_scores(np.array([0]), points, visible, points, visible)
    none = point_scores(np.array([1]), points, visible, points, visible)
    assert math.isnan(none.average_jaccard)
    assert math.isnan(none.occlusion_accuracy)
    together = mean_point_scores([good, none])
    scores = (together.average_jaccard, together.jaccard[4], together.within[1], together.occlusion_accuracy)
    assert scores == (1, 1, 1, 1)
    assert math.isnan(mean_point_scores([none]).average_within)
