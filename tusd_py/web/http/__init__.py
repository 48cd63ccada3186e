"""HTTP/1.1 for uploads: the connection, direct bodies, sendfile."""
