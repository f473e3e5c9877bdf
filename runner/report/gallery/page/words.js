// ---- words: from what is typed into the filter to a test of rows

// Words and "quoted words", each perhaps behind a key: seed:27, prompt:"red apple", or seed 27.
function tokens(text) {
  const found = [];
  for (const match of text.toLowerCase().matchAll(/([\p{L}\p{N}_.]+)[:=](?:"([^"]*)"?|(\S+))|"([^"]*)"?|(\S+)/gu)) {
    const [whole, key, quoted, bare, phrase, word] = match;
    if (key !== undefined && named(key)) found.push({ key, value: quoted ?? bare });
    else if (phrase !== undefined || word !== undefined || key !== undefined) found.push({ value: phrase ?? word ?? whole });
  }
  return found.filter(token => token.value);
}

const named = key => data.columns.find(column => column.name.toLowerCase() === key || column.short.toLowerCase() === key)
  || (Object.keys(data.common).some(name => name.toLowerCase() === key) ? { common: key } : undefined);

const isNumber = text => /^-?\d+(\.\d+)?$/.test(text);
const wholeWords = text => text.split(/[^\p{L}\p{N}._-]+/u);

// A number has to be a whole word, so that "seed 3" isn't 13 as well; other words may be part of one.
const has = (text, word) => (isNumber(word) ? text === word || wholeWords(text).includes(word) : text.includes(word));

function ofKey(column, value) {
  const exact = column.lower.includes(value);
  return Uint8Array.from(column.lower, text => (exact || isNumber(value) ? text === value : text.includes(value)));
}

function tests(text) {
  const list = tokens(text), made = [];
  for (let place = 0; place < list.length; place++) {
    let { key, value } = list[place];
    const next = list[place + 1], column = key === undefined ? named(value) : named(key);
    if (key === undefined && column && next && next.key === undefined && isValue(column, next.value)) {
      value = next.value;
      place += 1;
    } else if (key === undefined) {
      made.push(ofWord(value));
      continue;
    }
    made.push(column.common ? { always: commonly(column.common, value) } : { masks: [[column.number, ofKey(column, value)]] });
  }
  return made;
}

const isValue = (column, value) => (column.common ? commonly(column.common, value) : column.lower.includes(value));
const commonly = (key, value) => Object.entries(data.common).some(([name, text]) => name.toLowerCase() === key && has(text.toLowerCase(), value));

function ofWord(word) {
  if (Object.values(data.common).some(text => has(text.toLowerCase(), word))) return { always: true };
  const masks = data.columns.map(column => [column.number, Uint8Array.from(column.lower, text => has(text, word))]);
  return { masks: masks.filter(([, mask]) => mask.includes(1)) };
}

function passes(row, made) {
  return made.every(test => test.always || (test.masks || []).some(([column, mask]) => mask[data.codes[column][row]]));
}
