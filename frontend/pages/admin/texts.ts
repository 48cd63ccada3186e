// All texts of the page, in English and German. A text with {} is filled in by `text(key, values)`.

const TEXTS = {
  // Navigation and signing in
  title: ['Operators', 'Betrieb'],
  skip: ['Skip to content', 'Zum Inhalt'],
  overview: ['Overview', 'Übersicht'],
  uploads: ['Uploads', 'Uploads'],
  events: ['Events', 'Ereignisse'],
  jobs: ['Jobs', 'Aufgaben'],
  duplicates: ['Duplicates', 'Duplikate'],
  owners: ['Owners', 'Eigentümer'],
  settings: ['Settings', 'Einstellungen'],
  log: ['Log', 'Protokoll'],
  signedIn: ['{} (by {})', '{} (über {})'],
  viaLink: ['link', 'Link'],
  viaToken: ['token', 'Token'],
  viaHeader: ['proxy', 'Proxy'],
  viaApplication: ['application', 'Anwendung'],
  signOut: ['Sign out', 'Abmelden'],
  signIn: ['Sign in', 'Anmelden'],
  signInHow: [
    'Run tusd-py dashboard on the machine of the server, with the options of the server, and open the link that it prints. It is good for five minutes and for one browser.',
    'Auf der Maschine des Servers tusd-py dashboard mit den Optionen des Servers ausführen und den Link öffnen, den es ausgibt. Er gilt fünf Minuten lang und für einen Browser.',
  ],
  signInToken: [
    'Or show an access token with the right to everything (uploads:admin):',
    'Oder ein Zugriffstoken mit allen Rechten (uploads:admin) zeigen:',
  ],
  token: ['Access token', 'Zugriffstoken'],
  linkUsed: [
    'The link was used already or is too old. Make a new one with tusd-py dashboard.',
    'Der Link wurde schon benutzt oder ist zu alt. tusd-py dashboard gibt einen neuen aus.',
  ],
  sessionEnded: ['The session has ended.', 'Die Sitzung ist zu Ende.'],
  noCookies: [
    'The browser keeps no cookie for this page, so nobody can stay signed in. Allow cookies for this address, then reload the page.',
    'Der Browser bewahrt für diese Seite kein Cookie auf; so kann niemand angemeldet bleiben. Cookies für diese Adresse erlauben und die Seite neu laden.',
  ],
  offline: [
    'The server cannot be reached; trying again.',
    'Der Server ist nicht zu erreichen; neuer Versuch läuft.',
  ],

  // Overview
  ready: ['Ready', 'Bereit'],
  notReady: ['Not ready', 'Nicht bereit'],
  storeOk: ['uploads can be stored', 'Uploads können gespeichert werden'],
  receiving: ['Receiving now', 'Empfängt gerade'],
  connections: ['{} connections', '{} Verbindungen'],
  unfinished: ['Unfinished', 'Unfertig'],
  dueNow: ['{} due for removal', '{} fällig zum Entfernen'],
  finished: ['Finished in the last hour, still there', 'In der letzten Stunde fertig, noch da'],
  finishedDay: ['{} in 24 hours', '{} in 24 Stunden'],
  rate: ['Incoming', 'Eingehend'],
  perSecond: ['{}/s', '{}/s'],
  free: ['Free space', 'Freier Platz'],
  unlimited: ['unlimited', 'unbegrenzt'],
  reserve: ['{} reserved', '{} reserviert'],
  noReserve: ['no reserve', 'keine Reserve'],
  spool: ['spool of {}', 'Puffer von {}'],
  workers: ['Workers', 'Arbeiter'],
  scheduler: ['scheduler {} ago', 'Planer vor {}'],
  noScheduler: ['no scheduler', 'kein Planer'],
  problems: ['Problems', 'Probleme'],
  none: ['none', 'keine'],
  building: [
    'The list of uploads is being built: some may be missing.',
    'Die Liste der Uploads wird aufgebaut: einige können fehlen.',
  ],
  lastHour: ['Last hour', 'Letzte Stunde'],
  sparkBytes: ['Bytes received', 'Empfangene Bytes'],
  sparkCreated: ['Uploads created', 'Angelegte Uploads'],
  sparkFinished: ['Uploads finished', 'Fertige Uploads'],
  sparkRefused: ['Requests refused', 'Abgelehnte Anfragen'],
  sparkTotal: ['{} in the last hour', '{} in der letzten Stunde'],

  // Live
  live: ['Receiving now', 'Gerade im Empfang'],
  nothingLive: ['Nothing is being received.', 'Es wird gerade nichts empfangen.'],
  someShown: ['{} of {} are shown.', '{} von {} werden gezeigt.'],
  order: ['Order', 'Reihenfolge'],
  longest: ['longest running first', 'am längsten laufende zuerst'],
  fastest: ['fastest first', 'schnellste zuerst'],
  silentest: ['silent longest first', 'am längsten stille zuerst'],
  file: ['Upload', 'Upload'],
  owner: ['Owner', 'Eigentümer'],
  client: ['Client', 'Client'],
  server: ['Server', 'Server'],
  progress: ['Progress', 'Fortschritt'],
  speed: ['Rate', 'Tempo'],
  left: ['Time left', 'Restzeit'],
  silent: ['Silent for', 'Still seit'],
  of: ['{} of {}', '{} von {}'],
  actions: ['Actions', 'Aktionen'],

  // Uploads
  search: ['Search', 'Suche'],
  searchHint: ['name, id or owner begins with', 'Name, Id oder Eigentümer beginnt mit'],
  searchHintIds: ['id or owner begins with', 'Id oder Eigentümer beginnt mit'],
  state: ['State', 'Zustand'],
  all: ['all', 'alle'],
  uploading: ['uploading', 'lädt hoch'],
  waiting: ['waiting for parts', 'wartet auf Teile'],
  stateUnfinished: ['unfinished', 'unfertig'],
  stateFinished: ['finished', 'fertig'],
  part: ['part', 'Teil'],
  expired: ['expired', 'abgelaufen'],
  unreadable: ['unreadable', 'unlesbar'],
  newest: ['newest first', 'neueste zuerst'],
  oldest: ['oldest first', 'älteste zuerst'],
  changed: ['Last byte', 'Letztes Byte'],
  expires: ['Removed', 'Entfernt'],
  never: ['never', 'nie'],
  ago: ['{} ago', 'vor {}'],
  inTime: ['in {}', 'in {}'],
  total: ['{} uploads', '{} Uploads'],
  more: ['Show more', 'Mehr zeigen'],
  nothingFound: ['Nothing was found.', 'Nichts gefunden.'],
  back: ['Back', 'Zurück'],

  // One upload
  metadata: ['Metadata', 'Metadaten'],
  metadataHidden: [
    'Names and metadata are not shown here (--admin-show-metadata).',
    'Namen und Metadaten werden hier nicht gezeigt (--admin-show-metadata).',
  ],
  noMetadata: ['It has no metadata.', 'Es hat keine Metadaten.'],
  parts: ['Parts', 'Teile'],
  fingerprint: ['Fingerprint', 'Fingerabdruck'],
  revoked: ['revoked', 'widerrufen'],
  timeline: ['Timeline', 'Verlauf'],
  created: ['created', 'angelegt'],
  byte: ['last byte', 'letztes Byte'],
  event: ['event waits', 'Ereignis wartet'],
  'failed-event': ['event failed', 'Ereignis gescheitert'],
  willExpire: ['is removed', 'wird entfernt'],

  // Actions
  details: ['Details', 'Einzelheiten'],
  download: ['Download', 'Herunterladen'],
  copyUrl: ['Copy URL', 'URL kopieren'],
  copied: ['The URL was copied.', 'Die URL wurde kopiert.'],
  endRequest: ['End request', 'Anfrage beenden'],
  endRequestAsk: [
    'End the request that is writing to {}? What arrived is kept; the client may resume.',
    'Die Anfrage beenden, die an {} schreibt? Was ankam, bleibt; der Client kann fortsetzen.',
  ],
  remove: ['Remove', 'Entfernen'],
  removeAsk: [
    'Remove {} and all its bytes? This cannot be undone.',
    '{} und alle Bytes entfernen? Das lässt sich nicht rückgängig machen.',
  ],
  extend: ['Keep longer', 'Länger behalten'],
  extendAsk: ['Keep {} for at least:', '{} mindestens behalten für:'],
  days: ['{} days', '{} Tage'],
  revoke: ['Revoke', 'Widerrufen'],
  revokeAsk: [
    'Revoke the tokens of {} for good? Its running request ends.',
    'Die Token von {} endgültig widerrufen? Die laufende Anfrage endet.',
  ],
  revokeOwnerAsk: [
    'Revoke all tokens of {} that were issued until now? Running requests end.',
    'Alle bis jetzt ausgestellten Token von {} widerrufen? Laufende Anfragen enden.',
  ],
  forget: ['Forget fingerprint', 'Fingerabdruck vergessen'],
  forgetAsk: [
    'Forget the fingerprint of {}? The same can then be uploaded again.',
    'Den Fingerabdruck von {} vergessen? Dasselbe kann dann erneut hochgeladen werden.',
  ],
  replay: ['Deliver again', 'Erneut zustellen'],
  replayAsk: ['Deliver {} again?', '{} erneut zustellen?'],
  drop: ['Drop', 'Verwerfen'],
  dropAsk: [
    'Drop {} for good? No hook will be told of it.',
    '{} endgültig verwerfen? Kein Hook erfährt davon.',
  ],
  replayAll: ['Deliver all again', 'Alle erneut zustellen'],
  dropAll: ['Drop all', 'Alle verwerfen'],
  allFailed: ['all failed events', 'alle gescheiterten Ereignisse'],
  cancel: ['Cancel', 'Abbrechen'],
  done: ['Done: {}', 'Erledigt: {}'],
  failed: ['That failed: {}', 'Das ging nicht: {}'],

  // Events
  failedBox: ['Failed', 'Gescheitert'],
  waitingBox: ['Waiting', 'Wartend'],
  eventCounts: ['{} failed, {} waiting', '{} gescheitert, {} wartend'],
  oldestEvent: ['the oldest for {}', 'das älteste seit {}'],
  noEvents: ['There are no such events.', 'Solche Ereignisse gibt es nicht.'],
  noDelivery: [
    'This server calls all hooks itself, once; no events are kept.',
    'Dieser Server ruft alle Hooks selbst auf, einmal; Ereignisse werden nicht aufbewahrt.',
  ],
  type: ['Type', 'Art'],
  attempts: ['Attempts', 'Versuche'],
  problem: ['Problem', 'Problem'],
  kept: ['Since', 'Seit'],

  // Jobs
  queues: ['Queues', 'Warteschlangen'],
  queueWaiting: ['Waiting', 'Wartend'],
  queueRunning: ['Running', 'Laufend'],
  queueFailed: ['Failed', 'Gescheitert'],
  queueOldest: ['Oldest', 'Älteste'],
  name: ['Name', 'Name'],
  heard: ['Heard', 'Gehört'],
  schedule: ['Schedule', 'Zeitplan'],
  next: ['Next run', 'Nächster Lauf'],
  sweeps: ['Last sweeps', 'Letzte Aufräumläufe'],
  sweepKind: ['Kind', 'Art'],
  due: ['what is due', 'was fällig ist'],
  whole: ['the whole storage', 'der ganze Speicher'],
  ended: ['Ended', 'Ende'],
  took: ['Took', 'Dauer'],
  seen: ['Seen', 'Gesehen'],
  removed: ['Removed', 'Entfernt'],
  sweepNow: ['Sweep now', 'Jetzt aufräumen'],
  sweepAll: ['Sweep all now', 'Jetzt alles aufräumen'],
  sweepDry: ['Dry run: {}', 'Probelauf: {}'],
  sweepAsk: [
    '{}. Remove them now? This cannot be undone.',
    '{}. Jetzt entfernen? Das lässt sich nicht rückgängig machen.',
  ],

  // Duplicates and owners
  refusedToday: ['{} duplicates were refused today.', '{} Duplikate wurden heute abgelehnt.'],
  duplicatesOff: [
    'Duplicates are not detected (--duplicates off).',
    'Duplikate werden nicht erkannt (--duplicates off).',
  ],
  duplicatesHint: ['fingerprint, or id of an upload', 'Fingerabdruck oder Id eines Uploads'],
  pending: ['being uploaded', 'wird hochgeladen'],
  complete: ['finished', 'fertig'],
  ending: ['being removed', 'wird entfernt'],
  until: ['Until', 'Bis'],
  nobody: ['(nobody)', '(niemand)'],
  openUploads: ['Unfinished', 'Unfertig'],
  bytes: ['Bytes', 'Bytes'],
  counted: ['Counted for quota', 'Zählt zum Kontingent'],
  counting: [
    'The bytes are being counted: some uploads do not count for their quota yet.',
    'Die Bytes werden gezählt: Einige Uploads zählen noch nicht zu ihrem Kontingent.',
  ],
  limits: ['Largest upload: {}', 'Größter Upload: {}'],
  show: ['Show uploads', 'Uploads zeigen'],
  ownerOnly: ['Only of {}', 'Nur von {}'],
  allOwners: ['All owners', 'Alle Eigentümer'],

  // Settings and log
  value: ['Value', 'Wert'],
  origin: ['From', 'Woher'],
  changedOnly: ['Only what is not a default', 'Nur was nicht voreingestellt ist'],
  warnings: ['Last warnings and errors', 'Letzte Warnungen und Fehler'],
  noWarnings: ['There were none.', 'Es gab keine.'],
  lastActions: ['Last actions of operators', 'Letzte Aktionen'],
  noActions: ['There were none.', 'Es gab keine.'],
  time: ['Time', 'Zeit'],
  who: ['Who', 'Wer'],
  what: ['What', 'Was'],
} as const

/** Problems by their codes; one that is not here is shown as the server words it. */
const PROBLEMS: Record<string, readonly [string, string]> = {
  store: [
    'Uploads cannot be stored now; the log has the reason.',
    'Uploads können gerade nicht gespeichert werden; der Grund steht im Protokoll.',
  ],
  space: [
    'The free space is below the reserve, so uploads are refused.',
    'Der freie Platz liegt unter der Reserve, daher werden Uploads abgelehnt.',
  ],
  redis: ['Redis is away.', 'Redis ist nicht erreichbar.'],
  'no-scheduler': ['No scheduler runs.', 'Kein Planer läuft.'],
  'no-worker': ['No worker runs.', 'Kein Arbeiter läuft.'],
  'failed-jobs': ['Sweeps failed: {}.', 'Aufräumläufe sind gescheitert: {}.'],
  'failed-events': [
    'Events failed after all attempts: {}.',
    'Ereignisse sind nach allen Versuchen gescheitert: {}.',
  ],
  'late-events': ['An event has been waiting for too long.', 'Ein Ereignis wartet schon zu lange.'],
  'no-sweep': ['Nothing has been swept for too long.', 'Es wurde zu lange nicht aufgeräumt.'],
}

export type Key = keyof typeof TEXTS

export const language: 'en' | 'de' = navigator.language.toLowerCase().startsWith('de') ? 'de' : 'en'
const column = language === 'de' ? 1 : 0

function fill(template: string, values: readonly (string | number)[]): string {
  let at = 0
  return template.replace(/\{\}/g, () => String(values[at++] ?? ''))
}

/** The text of a key in the user's language. */
export function text(key: Key, ...values: (string | number)[]): string {
  return fill(TEXTS[key][column], values)
}

/** A problem in words. */
export function problemText(code: string, detail: string, count: number | null): string {
  const known = PROBLEMS[code]
  return known ? fill(known[column], [count ?? '']) : detail
}
