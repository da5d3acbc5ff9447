"""Measuring on phones: Android over adb, iOS by what its app writes."""
