"""What a worker carries out when it is asked by remote control.

For the consumer's remote control; an app adds commands of its own with `control_command` and
`inspect_command`.
"""
