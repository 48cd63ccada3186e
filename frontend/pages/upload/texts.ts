// Every text of the upload page, in English and German. {name} in a text is replaced.

import { keep, kept } from '../shared/kept.js'

const english = {
  title: 'Upload files',
  about: 'Uploads go on after a lost connection, a reload, or a restart of the server.',
  drop: 'Drop files or folders here',
  paste: 'or paste them',
  chooseFiles: 'Choose files',
  chooseFolder: 'Choose a folder',
  largest: 'At most {size} a file.',
  uploads: 'Uploads',
  summary: '{done} of {count} uploaded',
  left: 'Unfinished from your last visit',
  leftAbout: 'The server keeps what has arrived.',
  arrived: '{sent} of {total} arrived',
  goOn: 'Go on',
  goOnAll: 'Go on with all',
  chooseAgain: 'Choose the file again',
  remove: 'Remove',
  hide: 'Hide',
  clear: 'Clear the list',
  pause: 'Pause',
  pauseAll: 'Pause all',
  resume: 'Resume',
  resumeAll: 'Resume all',
  retry: 'Try again',
  restart: 'Begin anew',
  cancel: 'Cancel',
  open: 'Open',
  save: 'Save a copy',
  copyLink: 'Copy link',
  copied: 'Copied',
  more: 'Show {count} more',
  askRemove: 'Remove what has arrived of {name}?',
  yesRemove: 'Yes, remove it',
  noKeep: 'No, keep it',
  of: '{sent} of {total}',
  perSecond: '{speed}/s',
  timeLeft: '{time} left',
  queued: 'Waits for its turn',
  uploading: 'Uploading',
  paused: 'Paused',
  completed: 'Uploaded',
  cancelled: 'Cancelled',
  asking: 'Waits for your answer',
  waitingServer: 'Waiting for the server; goes on by itself',
  waitingLine: 'No connection; goes on by itself',
  waitingToken: 'Waits for a token',
  lineLost: 'The server cannot be reached. Uploads go on by themselves as soon as it is back.',
  lineBack: 'The server is back.',
  busy: 'The server is busy; goes on by itself',
  full: 'The server has no room left; goes on by itself when it has',
  tooMany: 'You have as many unfinished uploads as you may; goes on by itself',
  failed: 'Failed',
  errorUnauthorized: 'The server does not accept the token',
  errorForbidden: 'You may not upload this here',
  errorGone: 'The server does not have this upload any more',
  errorDuplicate: 'The server has this file already',
  errorTooLarge: 'The file is too large for this server',
  errorUnsupported: 'The server does not take files of this kind',
  errorRejected: 'The server refused it: {detail}',
  errorSource: 'The file cannot be read, or was changed since it was chosen',
  errorElsewhere: 'Another tab is uploading this',
  errorNetwork: 'No answer from the server',
  errorOtherFile: '{name} is not the file that was being uploaded',
  errorOver: '{name} was finished or removed in another tab',
  errorFolder: '{name} could not be read',
  errorOpen: '{name} could not be fetched: the server answered {status}',
  errorStorage: 'The browser keeps no data for this page: after a reload, uploads begin anew.',
  errorPermission: 'The browser was not allowed to read {name}',
  duplicateTitle: 'Uploaded before?',
  duplicateComplete: 'A file like {name} is on the server already.',
  duplicatePending: 'An upload of {name} was begun before: {sent} have arrived.',
  duplicateBusy: 'Someone is uploading a file like {name} at this moment.',
  answerOpen: 'Open the one that is there',
  answerResume: 'Go on with the unfinished one',
  answerForce: 'Upload it all the same',
  answerLeave: 'Leave it',
  answerAll: 'Answer the same for all others',
  tokenTitle: 'This server asks for a token',
  tokenLabel: 'Token',
  tokenUse: 'Use this token',
  tokenKept: 'It stays in this tab and is sent to this server only.',
  tokenRefused: 'The server did not accept this token. Enter another one.',
  tokenSet: 'Token entered.',
  tokenChange: 'Change the token',
  tokenEndpoint: 'No token could be had. It is tried again; you may have to sign in.',
  saidDone: '{name} is uploaded',
  saidFailed: '{name} failed: {why}',
  saidAdded: '{count} files added',
  saidAddedOne: '1 file added',
  otherLanguage: 'Deutsch',
}

export type Texts = { [Name in keyof typeof english]: string }

const german: Texts = {
  title: 'Dateien hochladen',
  about:
    'Uploads gehen nach einer Verbindungsunterbrechung, einem Neuladen oder einem Neustart des Servers weiter.',
  drop: 'Dateien oder Ordner hier ablegen',
  paste: 'oder einfügen',
  chooseFiles: 'Dateien wählen',
  chooseFolder: 'Ordner wählen',
  largest: 'Höchstens {size} je Datei.',
  uploads: 'Uploads',
  summary: '{done} von {count} hochgeladen',
  left: 'Beim letzten Besuch nicht fertig geworden',
  leftAbout: 'Der Server behält, was angekommen ist.',
  arrived: '{sent} von {total} angekommen',
  goOn: 'Fortsetzen',
  goOnAll: 'Alle fortsetzen',
  chooseAgain: 'Datei erneut wählen',
  remove: 'Entfernen',
  hide: 'Ausblenden',
  clear: 'Liste leeren',
  pause: 'Anhalten',
  pauseAll: 'Alle anhalten',
  resume: 'Fortsetzen',
  resumeAll: 'Alle fortsetzen',
  retry: 'Erneut versuchen',
  restart: 'Neu beginnen',
  cancel: 'Abbrechen',
  open: 'Öffnen',
  save: 'Kopie speichern',
  copyLink: 'Link kopieren',
  copied: 'Kopiert',
  more: '{count} weitere zeigen',
  askRemove: 'Entfernen, was von {name} angekommen ist?',
  yesRemove: 'Ja, entfernen',
  noKeep: 'Nein, behalten',
  of: '{sent} von {total}',
  perSecond: '{speed}/s',
  timeLeft: 'noch {time}',
  queued: 'Wartet, bis es an der Reihe ist',
  uploading: 'Wird hochgeladen',
  paused: 'Angehalten',
  completed: 'Hochgeladen',
  cancelled: 'Abgebrochen',
  asking: 'Wartet auf Ihre Antwort',
  waitingServer: 'Wartet auf den Server; geht von selbst weiter',
  waitingLine: 'Keine Verbindung; geht von selbst weiter',
  waitingToken: 'Wartet auf ein Token',
  lineLost:
    'Der Server ist nicht erreichbar. Uploads gehen von selbst weiter, sobald er zurück ist.',
  lineBack: 'Der Server ist wieder da.',
  busy: 'Der Server ist beschäftigt; geht von selbst weiter',
  full: 'Der Server hat keinen Platz mehr; geht von selbst weiter, sobald er welchen hat',
  tooMany: 'Sie haben so viele unfertige Uploads, wie Sie dürfen; geht von selbst weiter',
  failed: 'Fehlgeschlagen',
  errorUnauthorized: 'Der Server nimmt das Token nicht an',
  errorForbidden: 'Sie dürfen dies hier nicht hochladen',
  errorGone: 'Der Server hat diesen Upload nicht mehr',
  errorDuplicate: 'Der Server hat diese Datei schon',
  errorTooLarge: 'Die Datei ist zu groß für diesen Server',
  errorUnsupported: 'Der Server nimmt Dateien dieser Art nicht an',
  errorRejected: 'Der Server hat abgelehnt: {detail}',
  errorSource: 'Die Datei ist nicht lesbar oder wurde geändert, seit sie gewählt wurde',
  errorElsewhere: 'Ein anderer Tab lädt dies gerade hoch',
  errorNetwork: 'Keine Antwort vom Server',
  errorOtherFile: '{name} ist nicht die Datei, die hochgeladen wurde',
  errorOver: '{name} wurde in einem anderen Tab fertig oder entfernt',
  errorFolder: '{name} konnte nicht gelesen werden',
  errorOpen: '{name} konnte nicht geholt werden: Der Server antwortete mit {status}',
  errorStorage:
    'Der Browser bewahrt für diese Seite nichts auf: Nach einem Neuladen beginnen Uploads von vorn.',
  errorPermission: 'Der Browser durfte {name} nicht lesen',
  duplicateTitle: 'Schon hochgeladen?',
  duplicateComplete: 'Eine Datei wie {name} ist schon auf dem Server.',
  duplicatePending: 'Ein Upload von {name} wurde schon begonnen: {sent} sind angekommen.',
  duplicateBusy: 'Jemand lädt gerade eine Datei wie {name} hoch.',
  answerOpen: 'Die vorhandene öffnen',
  answerResume: 'Den unfertigen Upload fortsetzen',
  answerForce: 'Trotzdem hochladen',
  answerLeave: 'Nicht hochladen',
  answerAll: 'Für alle anderen genauso antworten',
  tokenTitle: 'Dieser Server verlangt ein Token',
  tokenLabel: 'Token',
  tokenUse: 'Dieses Token verwenden',
  tokenKept: 'Es bleibt in diesem Tab und geht nur an diesen Server.',
  tokenRefused: 'Der Server hat dieses Token nicht angenommen. Geben Sie ein anderes ein.',
  tokenSet: 'Token eingegeben.',
  tokenChange: 'Token ändern',
  tokenEndpoint:
    'Es war kein Token zu bekommen. Es wird erneut versucht; vielleicht müssen Sie sich anmelden.',
  saidDone: '{name} ist hochgeladen',
  saidFailed: '{name} ist fehlgeschlagen: {why}',
  saidAdded: '{count} Dateien hinzugefügt',
  saidAddedOne: '1 Datei hinzugefügt',
  otherLanguage: 'English',
}

export type Language = 'en' | 'de'
const ALL: Record<Language, Texts> = { en: english, de: german }
const KEPT = 'tusd-py-language'

/** The one chosen before, else the first of the browser's that there is. */
export function firstLanguage(): Language {
  const chosen = kept('localStorage', KEPT)
  if (chosen === 'en' || chosen === 'de') return chosen
  const known = navigator.languages.find((each) => /^(en|de)\b/.test(each))
  return known?.startsWith('de') ? 'de' : 'en'
}

export function keepLanguage(language: Language): void {
  keep('localStorage', KEPT, language)
}

export type Say = (name: keyof Texts, values?: Record<string, string | number>) => string

/** Says texts in a language. */
export function sayIn(language: Language): Say {
  return (name, values = {}) =>
    ALL[language][name].replace(/\{(\w+)\}/g, (whole, key: string) =>
      isolated(String(values[key] ?? whole)),
    )
}

/** Letters that are written from right to left, and marks that turn the direction. */
const TURNS = /[\u0590-\u08ff\u200e\u200f\u202a-\u202e\u2066-\u2069\ufb1d-\ufdff\ufe70-\ufefc]/

/** A name within a sentence, which it must not rearrange. */
function isolated(text: string): string {
  return TURNS.test(text) ? `\u2068${text}\u2069` : text
}
