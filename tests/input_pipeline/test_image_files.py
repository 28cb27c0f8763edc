"""Image files of any mode and size become 8-bit RGB."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from input_pipeline.load import load_dataset
from tests.input_pipeline.helpers import picture


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "LA", "1", "CMYK"])
def test_every_mode_becomes_rgb(folder, mode):
    path = folder / "test" / "cat" / ("0.tif" if mode == "CMYK" else "0.png")
    picture(5).convert(mode).save(path)
    expected = torch.from_numpy(np.array(picture(5).convert(mode).convert("RGB")))
    images = load_dataset("folder", folder).test.images
    assert torch.equal(images[0 if mode != "CMYK" else 1], expected.permute(2, 0, 1))


def test_16_bit_grey_keeps_its_range(folder):
    values = np.linspace(0, 65535, 120).round().astype(np.uint16).reshape(10, 12)
    Image.fromarray(values).save(folder / "test" / "cat" / "0.png")
    image = load_dataset("folder", folder).test.images[0]
    assert image[0, 0, 0] == 0 and image[0, -1, -1] == 255
    assert np.abs(image[1].numpy() - values / 257).max() <= 0.5


def test_img_size_fits_the_shorter_side_and_crops_the_centre(folder):
    exact = picture(1, 8, 8)
    exact.save(folder / "test" / "cat" / "0.png")
    tall = picture(2, 9, 20)
    tall.save(folder / "test" / "cat" / "1.png")
    data = load_dataset("folder", folder, img_size=8)
    assert data.image_shape == (3, 8, 8)
    as_tensor = [torch.from_numpy(np.array(x)).permute(2, 0, 1) for x in (exact, tall)]
    assert torch.equal(data.test.images[0], as_tensor[0])
    crop = v2.Compose([v2.Resize(8, antialias=True), v2.CenterCrop(8)])
    # Pillow and torchvision's tensors round their fixed-point weights differently.
    torch.testing.assert_close(data.test.images[1].int(), crop(as_tensor[1]).int(), atol=1, rtol=0)
