"""Colors that people tell apart, the color-blind included."""

# Six colors of Okabe and Ito, continued by the colors farthest from all before them in CIELAB,
# for normal vision and under simulated deuteranopia and protanopia.
PALETTE = (
    "#0072B2 #D55E00 #009E73 #CC79A7 #E69F00 #56B4E9 #0000FF #4B3C0F #5A69FF #4B2D4B "
    "#E10F4B #D2C378 #1E2D87 #3C00B4 #7896FF #B40078 #00E13C #4B693C #D20FB4 #FF8796 "
    "#874B00 #691E2D #D2874B #00C3D2 #A51ED2 #693CFF #4B5A78 #690F69 #4B960F #A52D2D"
).split()
MISSING_COLOR = "#D0D0D0"
