"""Pictures that a recipe draws itself, with captions, questions and answers: road signs, charts, menus. Needs Pillow only."""
