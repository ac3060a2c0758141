/* A message that is pasted into the search is looked for word by word. The search would take its quotes, hyphens and
   colons for operators, and each word for the beginning of longer ones. A few words remain beginnings of words. */
{
  const QUERY = 2 // the kind of message that asks the search
  const LONG = 4 // words
  const COMMON = new Set("a an and are as at be by for has have if in is it its no not of on or so than that the their this to was with".split(" "))

  const plain = text => {
    const words = text.toLowerCase().split(/[^\p{L}\p{N}_.]+|\.(?!\d)/u).filter(word => (word.length > 1 || /\d/.test(word)) && !COMMON.has(word))
    if (words.length < LONG) return text.replace(/[^\p{L}\p{N}_.\s-]+|(?<!\S)-+/gu, " ")
    return [...new Set(words)].map(word => `${word}^1`).join(" ")
  }

  const send = window.Worker.prototype.postMessage
  window.Worker.prototype.postMessage = function (message, ...rest) {
    const asks = message && message.type === QUERY && typeof message.data === "string"
    return send.call(this, asks ? { ...message, data: plain(message.data) } : message, ...rest)
  }
}
