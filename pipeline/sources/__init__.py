"""Where images and ground truth lie on disk, and which part of an image both stages look at."""
