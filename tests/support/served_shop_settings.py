"""The settings of the example site, with cheap passwords, on the database that the environment names."""

from __future__ import annotations

import json
import os

from example_project.shop.settings import *  # noqa: F403 - all of them

PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
if place := os.environ.get("SHOP_DATABASE"):
    DATABASES = {"default": json.loads(place)}
