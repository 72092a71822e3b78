"""`make fuzz`: every D-Bus method there is, with valid, nearly valid and hostile bodies, as an ordinary user."""
