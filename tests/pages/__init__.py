"""The pages that the server shows: how they are sent, and the upload page in Chromium."""
