set -- ${RESUME:++resume="$RESUME"}
# page:
python train.py optimizer.lr=0.01 "$@"
# end of page
