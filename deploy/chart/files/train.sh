# Trains MASK unless this run has been uploaded before, then uploads it with the run's alias.
folder=${FOLDER:-/scratch}
client() {
  if [ -n "${SERVER_CA:-}" ]; then
    SSL_CERT_FILE="$SERVER_CA" bmt-client "$@"
  else
    # Traffic to the server stays within the cluster.
    bmt-client --allow-insecure "$@"
  fi
}
# A wrong key shall not be found after hours of training. Exit codes: 3 wrong key, 4 not found.
tries=${TRIES:-180}
while :; do
  code=0
  client show "$MASK:$RUN" || code=$?
  case $code in
    0) echo "$MASK of this run is on the server"; exit 0 ;;
    4) break ;;
    3) exit 3 ;;
  esac
  tries=$((tries - 1))
  if [ $tries -le 0 ]; then echo "$BMT_URL does not answer"; exit 1; fi
  sleep "${WAIT:-10}"
done
# A restarted container resumes at its last checkpoint.
if [ ! -e $folder/trained ]; then
  bmt-train "$METHOD" --config /recipe/recipe.yaml --model "$MODEL" --output $folder/mask.bmt --resume
  touch $folder/trained
fi
client upload $folder/mask.bmt --name "$MASK" --alias "$RUN"
