"""The service in the mail path, and the operator's commands. Sockets, time, policy, people."""
