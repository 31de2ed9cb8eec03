import numpy as np

from nnunetv2_mapo.tools.export.check import compare_bits


def test_equal_bits_are_equal_even_where_they_are_not_a_number():
    logits = np.array([[0.5, np.nan, np.inf]], np.float16)
    assert compare_bits(logits, logits.copy()) == ""


def test_the_number_and_the_size_of_differences_are_named():
    source = np.array([1, 2, 3, 4], np.float16)
    exported = np.array([1, 2.5, 3, 4.25], np.float16)
    assert compare_bits(source, exported) == "2 of 4 logits, by up to 0.5"


def test_a_difference_that_comparison_does_not_see_is_one():
    assert compare_bits(np.array([0.0]), np.array([-0.0])).startswith("0 of 1 logits")


def test_other_shapes_and_types_are_named():
    source = np.zeros((2, 3), np.float16)
    assert compare_bits(source, np.zeros((3, 2), np.float16)) == (
        "logits are (2, 3) float16 in the source, (3, 2) float16 in the export"
    )
    assert "(2, 3) float32 in the export" in compare_bits(source, source.astype(np.float32))
