"""The command line: flags, printing, exit codes. Nothing else prints; nothing else imports click."""
