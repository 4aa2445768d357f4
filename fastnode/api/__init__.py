"""The faces: functions with the arguments and the results that users know."""
