"""The settings of the example site, on the database that the environment names."""

from __future__ import annotations

import json
import os

from example_project.shop.settings import *  # noqa: F403 - all of them

DATABASES = {"default": json.loads(os.environ["SHOP_DATABASE"])}
