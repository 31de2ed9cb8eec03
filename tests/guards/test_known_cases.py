import numpy as np

from nnunetv2_mapo.guards.known_cases import KnownCases


def draw(seed: int, shape=(1, 1, 40, 40)) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_a_known_image_is_found_by_its_content_up_to_the_last_bits():
    known = KnownCases((f"case_{n}", draw(n).shape, lambda n=n: draw(n)) for n in range(5))
    assert known.find(draw(3) + np.float32(1e-6)) == "case_3"
    assert known.find(draw(7)) is None


def test_an_image_that_is_the_same_in_its_middle_alone_is_another_one():
    other = draw(1)
    other[..., 0, 0] += 1
    assert KnownCases([("case", other.shape, lambda: draw(1))]).find(other) is None


def test_images_of_another_shape_are_not_read():
    def refuse() -> np.ndarray:
        raise AssertionError

    assert KnownCases([("case", (1, 9, 9, 9), refuse)]).find(draw(0)) is None
