"""Uploads as files on a local or shared file system."""
