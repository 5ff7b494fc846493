"""Printed numbers, the method that gave them with each of its mistakes, and runs beside both."""
