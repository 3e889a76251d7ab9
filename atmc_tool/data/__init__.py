"""Labelled images: one file per kind of source; `loader` brings them to the device. Only `loader` imports torch."""

from atmc_tool.data.catalogue import load_data
from atmc_tool.data.data_set import Augmentation, DataSet
from atmc_tool.data.images import Images
from atmc_tool.data.measured import test_labels, test_subset

__all__ = ["Augmentation", "DataSet", "Images", "load_data", "test_labels", "test_subset"]
