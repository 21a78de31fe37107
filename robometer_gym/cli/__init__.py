"""The command robometer-gym: one module per command. Nothing else imports this package."""
