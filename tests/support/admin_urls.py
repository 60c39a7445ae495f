"""The URLs of the site that tests/support/admin_site.py sets up; imported when the admin is complete."""

from django.contrib import admin
from django.urls import path

urlpatterns = [path("admin/", admin.site.urls)]
