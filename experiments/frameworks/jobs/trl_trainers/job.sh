export TRL_EXPERIMENTAL_SILENCE=1
python trainers.py
